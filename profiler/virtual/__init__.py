"""A GPU that is not there: transformers' real code on fake tensors, and PyTorch's caching allocator simulated."""
