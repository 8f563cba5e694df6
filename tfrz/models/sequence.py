"""What models of histories share: how they are configured, saved and made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import keras

from tfrz.config import from_mapping, require, to_mapping
from tfrz.data.spec import UserEmbedding
from tfrz.layers.history import LongHistoryAdapter
from tfrz.models.low_rank import low_rank_layers, with_low_rank


class SequenceModel(keras.Model):
    """A model that scores a vocabulary of items after a history.

    Args:
      config: an instance of `config_class`.
      num_items: V, the size of the vocabulary.
      item_rows: rows of the item tables: padding, vocabulary, out-of-vocabulary buckets.
      length: events of a history.
      context: categorical context to the number of its ids.
      numeric: names of numeric contexts.
      padding: the side on which histories are padded, `right` or `left`.
      long_history: the embedding of the user that comes with an example; None for none.
      adapter: how it is read, linear or gate (see `tfrz.layers.LongHistoryAdapter`).

    Raises:
      ConfigError: an argument is out of its range.
    """

    config_class: ClassVar[type]

    def __init__(
        self,
        config: Any,
        num_items: int,
        item_rows: int,
        length: int,
        context: Mapping[str, int] | None = None,
        numeric: Sequence[str] = (),
        padding: str = "right",
        long_history: UserEmbedding | None = None,
        adapter: Literal["linear", "gate"] = "linear",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(num_items >= 1, "num_items", "must be at least 1")
        require(item_rows > num_items, "item_rows", "must be above num_items")
        require(padding in ("right", "left"), "padding", "must be right or left")
        self.config, self.num_items, self.item_rows = config, num_items, item_rows
        self.length, self.padding = length, padding
        self.context, self.numeric = dict(context or {}), tuple(numeric)
        self.long_history, self.adapter = long_history, adapter

    def _long_history_adapter(self, units: int) -> LongHistoryAdapter | None:
        """The layer that reads the long history, if there is one to read."""
        if self.long_history is None:
            return None
        layer = LongHistoryAdapter(units, self.adapter, name="long_history", dtype=self._policy())
        layer.build((None, self.long_history.num_vectors, self.long_history.dim), (None,))
        return layer

    def _policy(self) -> Any:
        policy = getattr(self, "dtype_policy", None)
        return getattr(policy, "name", policy)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[batch, V]`."""
        return (next(iter(input_shape.values()))[0], self.num_items)

    def get_config(self) -> dict[str, Any]:
        """Plain values from which `from_config` makes an equal model."""
        values = {
            "config": to_mapping(self.config),
            "num_items": self.num_items,
            "item_rows": self.item_rows,
            "length": self.length,
            "context": self.context,
            "numeric": list(self.numeric),
            "padding": self.padding,
            "name": self.name,
            "dtype": self._policy(),
            **low_rank_layers(self),
        }
        if self.long_history is not None:
            values["long_history"] = to_mapping(self.long_history)
            values["adapter"] = self.adapter
        return values

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """The inverse of `get_config`."""
        del custom_objects
        values = dict(config)
        values["config"] = from_mapping(cls.config_class, values["config"], "model")
        if "long_history" in values:
            values["long_history"] = from_mapping(UserEmbedding, values["long_history"])
        low_rank = values.pop("low_rank", {})
        return with_low_rank(cls(**values), low_rank)
