"""What it costs to serve a tuned model: whole, its adapter merged or beside it, many adapters at once."""
