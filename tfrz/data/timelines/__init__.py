"""Timelines: sketches of the events of years, and candidates with outcomes."""
