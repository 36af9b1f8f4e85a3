"""Models whose module paths are Hugging Face's own."""
