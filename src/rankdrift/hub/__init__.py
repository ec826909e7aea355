"""What comes from the hub and goes to it: whole, compared with what the hub states, and never by accident."""
