"""A base class of layers whose configuration is read from their constructors."""

from __future__ import annotations

import inspect
from typing import Any

import keras


def _plain(value: Any) -> Any:
    """The value of a constructor's argument as plain data."""
    if isinstance(value, keras.initializers.Initializer):
        return keras.initializers.serialize(value)
    if isinstance(value, keras.regularizers.Regularizer):
        return keras.regularizers.serialize(value)
    if isinstance(value, tuple):
        return list(value)
    return keras.activations.serialize(value) if callable(value) else value


class ConfiguredLayer(keras.layers.Layer):
    """A layer that holds every argument of its constructor in an attribute of the same name."""

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        config: dict[str, Any] = super().get_config()
        for kind in type(self).__mro__:
            if issubclass(kind, ConfiguredLayer) and "__init__" in vars(kind):
                for name, parameter in inspect.signature(kind.__init__).parameters.items():
                    if name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
                        config[name] = _plain(getattr(self, name))
        return config
