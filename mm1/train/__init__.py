"""Training: the only room where Lightning is spoken."""
