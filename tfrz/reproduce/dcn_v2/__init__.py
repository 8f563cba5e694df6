"""DCN-V2 experiments."""
