"""Generators of records with known distributions."""
