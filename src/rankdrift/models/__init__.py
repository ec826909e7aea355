"""Base models and tokenizers: from the hub, a local folder, a GGUF file, or built in code."""
