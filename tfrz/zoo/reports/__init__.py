"""What is worth seeing of a trained model: one module a report, named in the registry."""
