"""Instances of a file in the types of a signature: padded lists, missing values, ids as text.

A missing value is what `serving_raw` takes for one: "", NaN, or the smallest int64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tfrz.errors import InputError

_MISSING: dict[str, Any] = {
    "STRING": "",
    "FLOAT": math.nan,
    "FLOAT32": math.nan,
    "DOUBLE": math.nan,
    "FLOAT64": math.nan,
    "INT64": -(2**63),
    "INT32": -(2**31),
}


def _value(value: Any, dtype: str, where: str) -> Any:
    if value is None:
        if dtype not in _MISSING:
            raise InputError(f"{where}: a value is missing, which {dtype} cannot say")
        return _MISSING[dtype]
    if isinstance(value, dict):
        if "b64" in value:
            return value
        raise InputError(f"{where}: {value!r:.40} is no value")
    if dtype == "STRING":
        if isinstance(value, float):
            if not value.is_integer():
                raise InputError(f"{where}: {value!r} is a number with a fraction, not an id")
            value = int(value)
        return value if isinstance(value, str) else str(value)
    if dtype.startswith(("INT", "UINT")):
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{where}: {value!r:.40} is not a whole number")
        return value
    if dtype in _MISSING and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(f"{where}: {value!r:.40} is not a number")
    return value


def fitted(
    instances: list[Any], inputs: Mapping[str, tuple[str, int | None]], file: str
) -> list[Any]:
    """Instances as a signature takes them.

    Args:
      instances: Objects with a value for each input; a value that is null or not there is missing.
        Those that are not objects are returned as they are.
      inputs: Type of each input, as TensorFlow calls it, and its rank with the batch.
      file: For messages.

    Returns:
      The instances, lists of an input padded to the longest with missing values.

    Raises:
      InputError: A value does not fit; names the row and the feature.
    """
    if not all(isinstance(row, dict) and "b64" not in row for row in instances):
        return instances
    rows: list[dict[str, Any]] = [{} for _ in instances]
    for number, row in enumerate(instances, start=1):
        for name in row:
            if name not in inputs:
                known = ", ".join(sorted(inputs))
                raise InputError(
                    f"{file}, row {number}: the model has no feature {name!r}: it has {known}"
                )
    for name, (dtype, rank) in inputs.items():
        if rank == 2:
            _add_lists(instances, rows, name, dtype, file)
            continue
        for number, (given, row) in enumerate(zip(instances, rows, strict=True), start=1):
            where, value = f"{file}, row {number}, feature {name}", given.get(name)
            if rank == 1:
                if isinstance(value, list):
                    if len(value) > 1:
                        raise InputError(f"{where}: has {len(value)} values, the model takes one")
                    value = value[0] if value else None
                value = _value(value, dtype, where)
            row[name] = value
    return rows


def _add_lists(
    instances: list[Any], rows: list[dict[str, Any]], name: str, dtype: str, file: str
) -> None:
    lists = []
    for number, given in enumerate(instances, start=1):
        value = given.get(name)
        where = f"{file}, row {number}, feature {name}"
        values = value if isinstance(value, list) else [] if value is None else [value]
        for one in values:
            if isinstance(one, list):
                raise InputError(f"{where}: a list of lists, the model takes a list of values")
        lists.append([_value(one, dtype, where) for one in values])
    width = max(map(len, lists), default=0)
    for values, row in zip(lists, rows, strict=True):
        row[name] = values + [_MISSING.get(dtype)] * (width - len(values))
