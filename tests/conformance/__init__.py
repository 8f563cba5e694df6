"""The battery that every layer and model of the registry passes.

A system joins it with a row in the registry and a module `tests/conformance/cases/<model>.py` that
has `LAYER_CASES` (see `case.LayerCase`) and `MODEL_CASES` (see `case.ModelCase`). The module may
have `DENSE_SETTINGS`, see `case.dense_settings`.
"""
