"""The zoo as TFX pipelines: one pipeline, made from a model's row in the registry."""
