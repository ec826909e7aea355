"""rankdrift: what LoRA does to a language model that full fine-tuning does not, measured per checkpoint."""

__version__ = "0.1.0"
