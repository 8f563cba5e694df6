"""Replaces dense layers by layers of low rank in a model of any class.

Layers are found where models of the zoo keep them: in public attributes, and in lists and dicts of
these. A model whose `get_config` and `from_config` call `low_rank_layers` and `with_low_rank`, as
those of `ZooModel` do, is saved and loaded with them. A model whose own configuration describes
layers of low rank is `Factorizable`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import keras

from tfrz.keras_versions import exchange_layer
from tfrz.layers.low_rank_dense import LowRankDense
from tfrz.layers.temporal import policy_of

Model = TypeVar("Model", bound=keras.Model)


@runtime_checkable
class Factorizable(Protocol):
    """A model whose own configuration describes which of its layers are of low rank."""

    def factorizable(self) -> dict[str, keras.layers.Layer]:
        """The layers between embeddings and output that can be of low rank, by name.

        Layers that already are of low rank are included.
        """

    def successor(self, ranks: Mapping[str, int], frobenius_decay: float) -> keras.Model:
        """A model with low-rank layers in some places and this model's weights in all others.

        Args:
          ranks: names of layers to their ranks. The factors of these layers keep their initial
            values.
          frobenius_decay: of the new layers; 0 for what this model has.

        Raises:
          ConfigError: the model cannot have these ranks or this decay.
        """


def _layers_in(value: Any) -> Iterator[keras.layers.Layer]:
    if isinstance(value, keras.layers.Layer):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _layers_in(part)


def _attributes(model: keras.Model) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(model).items() if not name.startswith("_")]


def placed_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers in a model's public attributes; a layer in two places is listed twice."""
    return [layer for _, value in _attributes(model) for layer in _layers_in(value)]


def replace_layer(model: keras.Model, old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Puts a layer in every place where `placed_layers` finds another one."""

    def changed(value: Any) -> Any:
        if value is old:
            return new
        if isinstance(value, Mapping):
            return {name: changed(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            parts = [changed(part) for part in value]
            return tuple(parts) if isinstance(value, tuple) else parts
        return value

    for name, value in _attributes(model):
        if any(layer is old for layer in _layers_in(value)):
            # Set the whole attribute: Keras cannot save a list that was changed in place.
            setattr(model, name, changed(value))
    exchange_layer(model, old, new)


def low_rank_like(
    dense: keras.layers.Dense, rank: int, frobenius_decay: float = 0.0
) -> LowRankDense:
    """A built low-rank layer with a dense layer's name, shape, activation and dtype."""
    layer = LowRankDense(
        dense.units,
        rank,
        activation=dense.activation,
        use_bias=dense.use_bias,
        frobenius_decay=frobenius_decay,
        kernel_initializer=keras.initializers.serialize(dense.kernel_initializer),
        bias_initializer=keras.initializers.serialize(dense.bias_initializer),
        name=dense.name,
        dtype=policy_of(dense),
    )
    layer.build((None, int(dense.kernel.shape[0])))
    return layer


def low_rank_layers(model: keras.Model) -> dict[str, Any]:
    """The entry `low_rank` of `get_config`: names of layers to their ranks and decays.

    Empty for a model without such layers, and for one whose configuration describes them.
    """
    if isinstance(model, Factorizable):
        return {}
    found = {
        layer.name: {"rank": layer.rank, "frobenius_decay": layer.frobenius_decay}
        for layer in placed_layers(model)
        if isinstance(layer, LowRankDense)
    }
    return {"low_rank": found} if found else {}


def with_low_rank(model: Model, low_rank: Mapping[str, Mapping[str, Any]]) -> Model:
    """Replaces the dense layers of a new model as `low_rank_layers` describes."""
    dense = {layer.name: layer for layer in placed_layers(model)}
    for name, values in low_rank.items():
        replace_layer(model, dense[name], low_rank_like(dense[name], **values))
    return model
