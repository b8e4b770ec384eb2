"""llama.cpp's graphs, scheduler and allocator, simulated: how large the buffers that it computes in become."""
