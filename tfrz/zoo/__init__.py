"""The zoo: the registry of models, their configurations, and the recipe of each record type."""
