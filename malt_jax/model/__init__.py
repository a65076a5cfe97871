"""The Llama decoder in Flax, its LoRA adapters and its cache levels."""
