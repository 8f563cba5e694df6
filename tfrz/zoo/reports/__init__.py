"""Reports on a trained model, one module each, named in the registry."""
