"""tfrz: the TensorFlow Recommender Zoo."""

__version__ = "0.1.0"
