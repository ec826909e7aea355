"""Sharded ZeRO checkpoints: read lazily, checked, consolidated."""
