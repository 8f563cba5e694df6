"""Impressions: a row is an example."""
