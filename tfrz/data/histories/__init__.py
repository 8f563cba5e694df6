"""Histories: interactions in time order, and the item that follows."""
