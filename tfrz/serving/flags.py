"""Flags in TF Serving's syntax (section 3 of the contract), and in the usual syntax of `tfrz`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from tfrz.serving.configuration import ServerConfig

_FIELDS = {field.name: field for field in dataclasses.fields(ServerConfig)}


class UsageError(Exception):
    """A flag with an invalid value; the process prints the usage and ends."""


def _kind(field: dataclasses.Field[Any]) -> type:
    return type(field.default)


def _value(field: dataclasses.Field[Any], text: str | None) -> Any:
    """The value of `--name=text`, or of `--name`.

    Raises:
      ValueError: the value is not of the flag's type.
    """
    kind = _kind(field)
    if kind is bool:
        return {None: True, "true": True, "false": False}[text]
    if text is None:
        raise KeyError(field.name)
    return kind(text)


def parse(arguments: Sequence[str]) -> tuple[ServerConfig, list[str], list[str]]:
    """Parses flags as the production server does.

    Returns:
      The configuration, the arguments that are not flags, and the flags without effect here.

    Raises:
      UsageError: a value is not of its flag's type.
    """
    values: dict[str, Any] = {}
    unknown = []
    for argument in arguments:
        name, equals, text = argument.removeprefix("--").partition("=")
        field = _FIELDS.get(name)
        if not argument.startswith("--") or field is None:
            unknown.append(argument)
            continue
        if not equals and _kind(field) is not bool:
            # `--port 8500`: neither argument is a flag.
            unknown.append(argument)
            continue
        try:
            values[name] = _value(field, text if equals else None)
        except (KeyError, ValueError):
            raise UsageError(argument) from None
    idle = [name for name in values if _FIELDS[name].metadata["idle"]]
    return ServerConfig(**values), unknown, idle


def usage(program: str) -> str:
    """Returns the list of flags."""
    lines = [f"usage: {program}", "Flags:"]
    for field in _FIELDS.values():
        default = str(field.default).lower() if _kind(field) is bool else field.default
        kind = {bool: "bool", int: "int", float: "float", str: "string"}[_kind(field)]
        text = field.metadata["help"] or "accepted, but without effect here"
        lines.append(f"\t--{f'{field.name}={default!s}':<45} {kind}\t{text}")
    return "\n".join(lines) + "\n"


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false") from None


def add_arguments(parser: argparse.ArgumentParser, aliases: dict[str, str]) -> None:
    """Adds every flag in the usual syntax, `--name value` or `--name=value`, without defaults."""
    for field in _FIELDS.values():
        kind = _kind(field)
        text = field.metadata["help"]
        if text and field.default != "":
            shown = str(field.default).lower() if kind is bool else field.default
            text = f"{text} ({shown})"
        more: dict[str, Any] = {"type": kind}
        if kind is bool:
            more = {"type": _boolean, "nargs": "?", "const": True}
        extra = [aliases[field.name]] if field.name in aliases else []
        parser.add_argument(
            f"--{field.name}",
            *extra,
            dest=field.name,
            default=argparse.SUPPRESS,
            help=text or argparse.SUPPRESS,
            metavar={int: "N", float: "X", str: "TEXT", bool: "true|false"}[kind],
            **more,
        )
