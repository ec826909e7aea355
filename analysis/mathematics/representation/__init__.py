"""How alike two models represent the same inputs, layer by layer. No I/O."""
