"""Configuration: names, types, ranges, overrides, round trips."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfrz.config import (
    apply_overrides,
    check_range,
    from_mapping,
    read_yaml,
    require,
    to_mapping,
    write_yaml,
)
from tfrz.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    units: tuple[int, ...] = (4,)
    kind: Literal["full", "low"] = "full"

    def __post_init__(self) -> None:
        require(self.rate > 0, "inner.rate", "must be above 0")


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str = "x"
    steps: int = 3
    bound: int | None = None
    flag: bool = False
    xla: Literal["auto", "on", "off"] = "auto"
    inner: Inner = Inner()


@given(
    steps=st.integers(),
    rate=st.floats(min_value=1e-6, max_value=1e6),
    units=st.lists(st.integers(), max_size=4),
    bound=st.none() | st.integers(),
)
def test_yaml_round_trip(tmp_path_factory, steps, rate, units, bound):
    config = Outer(steps=steps, bound=bound, inner=Inner(rate=rate, units=tuple(units)))
    path = tmp_path_factory.mktemp("yaml") / "c.yaml"
    path.write_text(write_yaml(config))
    assert from_mapping(Outer, read_yaml(path)) == config
    assert from_mapping(Outer, to_mapping(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.rat=1", "unknown key inner.rat; did you mean 'rate'"),
        ("step=1", "unknown key step; did you mean 'steps'"),
        ("inner.rate=fast", "inner.rate: expected a number"),
        ("inner.rate=-1", "inner.rate: must be above 0"),
        ("steps=1.5", "steps: expected a whole number"),
        ("steps=true", "steps: expected a whole number"),
        ("flag=1", "flag: expected bool"),
        ("inner.units=7", "inner.units: expected a list"),
        ("inner.units=[a]", "inner.units[0]: expected a whole number"),
        ("inner.kind=ful", "did you mean 'full'"),
        ("inner=3", "inner: expected a mapping"),
        ("steps", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("steps=[", "the value is not YAML"),
    ],
)
def test_a_bad_override_is_one_clear_line(override, message):
    with pytest.raises(ConfigError) as error:
        from_mapping(Outer, apply_overrides({}, [override]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_overrides_reach_nested_values_and_keep_the_others():
    mapping = apply_overrides({"inner": {"rate": 2.0}}, ["inner.units=[1, 2]", "bound=null"])
    assert from_mapping(Outer, mapping) == Outer(inner=Inner(rate=2.0, units=(1, 2)))


@pytest.mark.parametrize("word", ["auto", "on", "off", '"off"'])
def test_words_that_yaml_reads_as_booleans_are_words(word):
    assert from_mapping(Outer, apply_overrides({}, [f"xla={word}"])).xla == word.strip('"')


def test_exponents_without_a_dot_are_numbers():
    assert from_mapping(Outer, apply_overrides({}, ["inner.rate=1e-3"])).inner.rate == 1e-3


@pytest.mark.parametrize("content", ["[1", "- a", "3"])
def test_a_file_that_is_no_mapping_is_named(tmp_path, content):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        read_yaml(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml"):
        read_yaml(tmp_path / "none.yaml")


@dataclasses.dataclass(frozen=True)
class Ranged:
    """Numbers with bounds."""

    count: int = 1
    widths: tuple[int, ...] = ()
    share: float = 0.0
    limit: float | None = None

    def __post_init__(self) -> None:
        check_range(self, "model", "count", "widths", at_least=1)
        check_range(self, "model", "share", at_least=0, below=1)
        check_range(self, "model", "limit", above=0, at_most=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "model.count: must be at least 1"),
        ({"widths": (2, 0)}, "model.widths: must be at least 1"),
        ({"share": 1.0}, "model.share: must be at least 0, under 1"),
        ({"share": float("nan")}, "model.share: must be at least 0, under 1"),
        ({"limit": 0.0}, "model.limit: must be above 0, at most 2, or null"),
        ({"limit": 2.5}, "model.limit: must be above 0, at most 2, or null"),
    ],
)
def test_values_outside_their_bounds_are_refused(values, message):
    with pytest.raises(ConfigError) as refused:
        Ranged(**values)
    assert str(refused.value) == message


def test_values_at_their_bounds_are_accepted():
    Ranged(count=1, widths=(1, 5), share=0.0, limit=2.0)
    Ranged(widths=(), limit=None)
