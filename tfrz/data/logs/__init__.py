"""Logged actions: histories whose events have a reward and a propensity."""
