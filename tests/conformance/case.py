"""What a system gives to the battery, and how the battery finds it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tfrz.zoo import registry


@dataclasses.dataclass(frozen=True)
class LayerCase:
    """One way to construct and call a layer.

    Attributes:
      layer: the class's `module:name`, as in the registry.
      name: tells the case from the layer's others.
      arguments: of the constructor; dtype comes from the battery.
      inputs: shapes of the call's tensors, without the batch.
      oracle: NumPy float64: (weights by short name, *inputs) to the output.
      draw: (generator, batch) to the inputs, for those that are not any numbers of moderate size;
        whole numbers and booleans are given as floats, which layers cast.
    """

    layer: str
    name: str
    arguments: dict[str, Any]
    inputs: tuple[tuple[int, ...], ...]
    oracle: Callable[..., np.ndarray]
    draw: Callable[[np.random.Generator, int], list[np.ndarray]] | None = None

    @property
    def id(self) -> str:
        """Its name among the tests."""
        return f"{self.layer}-{self.name}"

    def make(self, dtype: str) -> Any:
        """A new layer."""
        return registry.resolve(self.layer)(dtype=dtype, **self.arguments)

    def batch(self, size: int, seed: int = 0, dtype: str = "float64") -> list[np.ndarray]:
        """Random inputs: those of `draw`, or of moderate size."""
        rng = np.random.default_rng(seed)
        if self.draw is not None:
            return [values.astype(dtype) for values in self.draw(rng, size)]
        return [rng.uniform(-1, 1, (size, *shape)).astype(dtype) for shape in self.inputs]


@dataclasses.dataclass(frozen=True)
class ModelCase:
    """One configuration of a model.

    Attributes:
      model: its name in the registry.
      name: tells the case from the model's others.
      overrides: of the run's configuration, as `--set` takes them.
      oracle: NumPy float64: (model, batch of NumPy arrays) to logits; None where there is none.
    """

    model: str
    name: str
    overrides: tuple[str, ...]
    oracle: Callable[..., np.ndarray] | None = None

    @property
    def id(self) -> str:
        """Its name among the tests."""
        return f"{self.model}-{self.name}"


registry.load_plugins()


def _module(model: str) -> Any:
    return importlib.import_module(f"tests.conformance.cases.{model}")


def _cases(attribute: str) -> list[Any]:
    return [case for name in registry.names() for case in getattr(_module(name), attribute)]


def dense_settings(model: str) -> tuple[str, ...] | None:
    """Overrides with which a model has dense or full cross layers; None if it never has any."""
    return getattr(_module(model), "DENSE_SETTINGS", ())


LAYER_CASES: list[LayerCase] = _cases("LAYER_CASES")
MODEL_CASES: list[ModelCase] = _cases("MODEL_CASES")


def each(cases: list[Any], fast: list[Any] | None = None) -> pytest.MarkDecorator:
    """Parametrizes `case`: those that are not in `fast` are for `make test-all` alone."""
    marked = [
        pytest.param(
            case,
            id=case.id,
            marks=[] if fast is None or case in fast else pytest.mark.slow,
        )
        for case in cases
    ]
    return pytest.mark.parametrize("case", marked)


def first_of(cases: list[Any], attribute: str) -> list[Any]:
    """The first case of each layer or model."""
    return list({getattr(case, attribute): case for case in reversed(cases)}.values())
