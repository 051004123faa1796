"""Text in, checkpoint out: train, evaluate, record."""
