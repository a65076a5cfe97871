"""Weights and tokenizers from Hugging Face and GGUF files."""
