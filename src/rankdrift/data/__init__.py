"""Rows from the hub, a folder of Parquet slices or a generator; prompts, tokens, batches."""
