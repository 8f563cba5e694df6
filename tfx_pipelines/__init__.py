"""The zoo as TFX pipelines: one pipeline for all models, built from their rows in the registry."""
