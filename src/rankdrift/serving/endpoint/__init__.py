"""Load on a server that speaks OpenAI's protocol, whichever engine is behind it."""
