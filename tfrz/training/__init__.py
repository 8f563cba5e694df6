"""Training: batches in a fixed order, the loop, the XLA policy, warm starts."""
