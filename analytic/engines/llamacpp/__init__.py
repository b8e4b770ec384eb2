"""What llama.cpp allocates: its graph, its scheduler and its allocator, and the engine on top."""
