"""What vLLM allocates."""
