"""Configuration: frozen dataclasses, built from plain mappings, changed by `a.b=c` overrides.

A configuration class is a frozen dataclass whose `__post_init__` calls `require` for its ranges.
`from_mapping` checks names and types, `to_mapping` is its inverse, `apply_overrides` edits the
plain mapping before the classes are built, so that every value passes the same checks.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import operator
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tfrz.errors import ConfigError

T = TypeVar("T")


def require(condition: bool, where: str, message: str) -> None:
    """Raises `ConfigError("<where>: <message>")` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{where}: {message}")


def check_range(
    config: Any,
    section: str,
    *names: str,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    """Checks that fields of a configuration lie between bounds.

    A field that holds several numbers must have each of them within the bounds. A field that is
    None passes.

    Args:
      config: a dataclass instance.
      section: the dotted place of `config` in a run's configuration, for messages.
      *names: fields of `config`.
      at_least: lowest allowed value.
      above: values must be larger than this.
      at_most: highest allowed value.
      below: values must be smaller than this.

    Raises:
      ConfigError: a value is outside the bounds, or is NaN.
    """
    bounds = [
        (name, bound, holds)
        for name, bound, holds in (
            ("at least", at_least, operator.ge),
            ("above", above, operator.gt),
            ("at most", at_most, operator.le),
            ("under", below, operator.lt),
        )
        if bound is not None
    ]
    message = "must be " + ", ".join(f"{name} {bound}" for name, bound, _ in bounds)
    types_of = {field.name: str(field.type) for field in dataclasses.fields(config)}
    for name in names:
        value = getattr(config, name)
        values = value if isinstance(value, list | tuple) else (value,)
        within = all(v is None or holds(v, bound) for v in values for _, bound, holds in bounds)
        optional = ", or null" if "None" in types_of[name] else ""
        require(within, f"{section}.{name}", message + optional)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known word, else the list of known words."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are: {', '.join(known)}" if known else ""


def _describe(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation)).replace("typing.", "")


def _convert(annotation: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [a for a in arguments if a is not type(None)]
        for kind in kinds[:-1]:
            try:
                return _convert(kind, value, where)
            except ConfigError:
                continue
        return _convert(kinds[-1], value, where)
    if origin is typing.Literal:
        if isinstance(value, bool) and {"on", "off"} <= set(arguments):
            value = "on" if value else "off"  # YAML 1.1 reads these words as booleans.
        if value not in arguments:
            near = did_you_mean(value, map(str, arguments)) if isinstance(value, str) else ""
            known = ", ".join(map(str, arguments))
            raise ConfigError(f"{where}: {value!r} is none of {known}{near}")
        return value
    if origin in (tuple, list):
        require(isinstance(value, list | tuple), where, f"expected a list, got {value!r}")
        kind = arguments[0] if arguments else Any
        converted = [_convert(kind, v, f"{where}[{i}]") for i, v in enumerate(value)]
        return tuple(converted) if origin is tuple else converted
    if origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        require(isinstance(value, Mapping), where, f"expected a mapping, got {value!r}")
        kind = arguments[1] if arguments else Any
        return {str(k): _convert(kind, v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(annotation):
        if isinstance(value, typing.cast(type, annotation)):
            return value
        return from_mapping(typing.cast(type, annotation), value, where)
    if annotation is float:
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a word.
            try:
                return float(value)
            except ValueError:
                pass
        require(
            isinstance(value, int | float) and not isinstance(value, bool),
            where,
            f"expected a number, got {value!r}",
        )
        return float(value)
    if annotation is int:
        require(
            isinstance(value, int) and not isinstance(value, bool),
            where,
            f"expected a whole number, got {value!r}",
        )
        return value
    if annotation is str and isinstance(value, datetime.date):
        return value.isoformat()  # YAML 1.1 reads dates.
    require(
        isinstance(value, annotation), where, f"expected {_describe(annotation)}, got {value!r}"
    )
    return value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return typing.get_type_hints(cls)


def from_mapping(cls: type[T], mapping: Mapping[str, Any] | None, where: str = "") -> T:
    """Builds the dataclass `cls`, nested ones included, from plain values.

    Args:
      cls: a frozen dataclass.
      mapping: names to values, as YAML gives them. Fields left out take their defaults.
      where: the dotted place of `mapping`, for messages.

    Raises:
      ConfigError: an unknown name (with the nearest known one), a wrong type or range.
    """
    prefix = f"{where}." if where else ""
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected a mapping of names to values, got {mapping!r}")
    hints = _hints(typing.cast(type, cls))
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in mapping:
        if name not in fields:
            raise ConfigError(f"unknown key {prefix}{name}{did_you_mean(str(name), fields)}")
    values = {
        name: _convert(hints[name], value, f"{prefix}{name}") for name, value in mapping.items()
    }
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where or cls.__name__}: {error}") from error


def to_mapping(config: Any) -> Any:
    """The inverse of `from_mapping`: dataclasses to mappings, tuples to lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {
            f.name: to_mapping(getattr(config, f.name))
            for f in dataclasses.fields(config)
            if f.init
        }
    if isinstance(config, Mapping):
        return {k: to_mapping(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [to_mapping(v) for v in config]
    return config


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change` over it, mapping by mapping."""
    merged = dict(base)
    for name, value in change.items():
        known = merged.get(name)
        merged[name] = (
            merge(known, value)
            if isinstance(known, Mapping) and isinstance(value, Mapping)
            else value
        )
    return merged


def apply_overrides(mapping: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`mapping` with every `a.b=c` of `overrides` set; `c` is read as YAML (`[64, 64]`, `null`).

    Raises:
      ConfigError: an override without `=`, an empty name, or a value that is not YAML.
    """
    import yaml

    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        require(bool(equals) and all(keys), f"--set {override}", "write it as section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not YAML") from error
        change: Any = value
        for key in reversed(keys):
            change = {key: change}
        mapping = merge(mapping, change)
    return dict(mapping)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
      ConfigError: the file is missing, is not YAML or holds something else than a mapping.
    """
    import yaml  # Not at the top: layers load without it.

    # LibYAML's parser is several times faster; not every build of PyYAML has it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(Path(path).read_text(), loader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected names with values, got {type(content).__name__}")
    return content


def write_yaml(config: Any) -> str:
    """The configuration as YAML text."""
    import yaml

    return yaml.safe_dump(to_mapping(config), sort_keys=False)
