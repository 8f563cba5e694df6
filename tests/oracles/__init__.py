"""NumPy float64 oracles, written from the specifications and not from the code."""
