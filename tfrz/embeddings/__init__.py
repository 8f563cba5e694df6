"""Users' embeddings made offline: the export job, its store, and what is said of their health."""
