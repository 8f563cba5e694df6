"""From a trained model to a SavedModel that TF Serving runs, with its card and warm-up."""
