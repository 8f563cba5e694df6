"""Offline embeddings of users: the export job, the store, and the health report."""
