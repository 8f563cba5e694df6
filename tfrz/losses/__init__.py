"""Losses that the systems of the zoo bring."""
