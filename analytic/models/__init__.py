"""Models: where they come from, their tensors and their geometry."""
