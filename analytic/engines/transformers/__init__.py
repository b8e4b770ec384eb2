"""What Hugging Face transformers allocates."""
