"""The papers' experiments: one module per paper, found through the registry."""
