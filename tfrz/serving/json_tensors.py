"""From JSON requests to arrays, and from arrays to JSON responses (contract 7.5 and 8)."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfrz.serving.model import dtype_word
from tfrz.serving.status import RequestError, invalid

_FLOATS = (tf.float32, tf.float64)
_RANGES = {
    tf.int64: (-(2**63), 2**63 - 1),
    tf.uint32: (0, 2**32 - 1),
    tf.uint64: (0, 2**64 - 1),
}
_INT32 = (-(2**31), 2**31 - 1)
_STRING_OR_INF = re.compile(r'"(?:[^"\\]|\\.)*"|Inf(?!inity)', re.DOTALL)
_LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# NumPy's limit; TensorFlow's own is 254.
_MAX_DIMENSIONS = 32
_INTEGERS = (tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint32, tf.uint64)


def parse(body: bytes) -> dict[str, Any]:
    """Parses the JSON object of a request; of duplicate keys the first one counts.

    Raises:
      RequestError: INVALID_ARGUMENT.
    """
    text = body.decode("utf-8", "surrogateescape")
    if not text.strip():
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = _load(text)
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except RecursionError as error:
        raise too_deep() from error
    if _LONE_SURROGATE.search(text) and not _encodable(document):
        raise invalid("JSON Parse error: The surrogate pair in string is invalid. at offset: 0")
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {show(document)} Is not object")
    return document


def _encodable(document: Any) -> bool:
    try:
        json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def too_deep() -> RequestError:
    """INVALID_ARGUMENT, for a document nested deeper than any tensor."""
    return invalid("JSON Parse error: Nesting is too deep at offset: 0")


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _integer(text: str) -> int | float:
    """Integers beyond 64 bits become floats; Python refuses to parse thousands of digits."""
    return int(text) if len(text) <= 20 else float(text)


def _load(text: str) -> Any:
    """Parses JSON with the bare tokens of section 8, which include `Inf` and `-Inf`."""
    try:
        return json.loads(text, object_pairs_hook=_first_wins)
    except json.JSONDecodeError:
        if "Inf" not in text:
            raise
        # Offsets in errors may be off by two for each of them.
        text = _STRING_OR_INF.sub(lambda m: "1e999" if m[0] == "Inf" else m[0], text)
    except ValueError:
        pass
    return json.loads(text, object_pairs_hook=_first_wins, parse_int=_integer)


def show(value: Any) -> str:
    """Returns a JSON value as messages show it."""
    return json.dumps(value, indent=4, ensure_ascii=False)


def type_name(value: Any) -> str:
    """Returns the type of a JSON value as messages name it."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    for kind, word in ((dict, "Object"), (list, "Array"), (str, "String")):
        if isinstance(value, kind):
            return word
    return "Number"


def _is_b64(value: Any) -> bool:
    return isinstance(value, dict) and "b64" in value


def _element(value: Any, dtype: tf.DType) -> Any:
    """Converts one value to its dtype."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype in _FLOATS and number:
        try:
            return float(value)
        except OverflowError:
            return math.copysign(math.inf, value)
    if dtype in _INTEGERS and number and isinstance(value, int):
        low, high = _RANGES.get(dtype, _INT32)
        if low <= value <= high:
            return value
    if dtype == tf.bool and isinstance(value, bool):
        return value
    if dtype == tf.string and isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if dtype == tf.string and _is_b64(value):
        text = value["b64"]
        if len(value) != 1 or not isinstance(text, str):
            raise invalid(f"JSON Value: {show(value)} not formatted correctly for base64 data")
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except ValueError as error:  # not of the alphabet, or not even ASCII
            raise invalid("Unable to base64 decode") from error
    if dtype not in (*_FLOATS, *_INTEGERS, tf.bool, tf.string):
        raise RequestError(
            _unimplemented(),
            f"Conversion of JSON Value: {show(value)} to type: {dtype_word(dtype)}",
        )
    raise invalid(
        f"JSON Value: {show(value)} Type: {type_name(value)} is not of expected type: "
        f"{dtype_word(dtype)}"
    )


def _unimplemented() -> Any:
    import grpc

    return grpc.StatusCode.UNIMPLEMENTED


def _shape(value: Any) -> list[int]:
    """Returns the shape of nested lists according to their first elements."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def _flatten(value: Any, shape: list[int], level: int, dtype: tf.DType, out: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {show(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        out.append(_element(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: "
            f"{shape[level]}"
        )
    for item in value:
        _flatten(item, shape, level + 1, dtype, out)


def _flat(value: Any, shape: list[int], dtype: tf.DType) -> list[Any] | None:
    """Returns the elements of nested lists on the fast path; None if they need the general one."""
    if not shape:
        return None
    flat = value
    for size in shape[1:]:
        if any(type(item) is not list or len(item) != size for item in flat):
            return None
        flat = list(itertools.chain.from_iterable(flat))
    kinds = set(map(type, flat))
    if dtype in _FLOATS and kinds <= {int, float}:
        try:
            return list(map(float, flat))
        except OverflowError:
            return None
    if dtype in _INTEGERS and kinds == {int}:
        low, high = _RANGES.get(dtype, _INT32)
        return flat if low <= min(flat) and max(flat) <= high else None
    if dtype == tf.string and kinds == {str}:
        return [text.encode("utf-8", "surrogateescape") for text in flat]
    return None


def _array(flat: list[Any], shape: list[int], dtype: tf.DType) -> np.ndarray:
    if dtype in (tf.int8, tf.int16, tf.uint8):
        return np.array(flat, np.int64).astype(dtype.as_numpy_dtype).reshape(shape)
    if dtype == tf.string:
        array = np.empty(len(flat), object)
        array[:] = flat
        return array.reshape(shape)
    with np.errstate(over="ignore"):
        return np.array(flat, dtype.as_numpy_dtype).reshape(shape)


def _plain(value: Any, shape: list[int], dtype: tf.DType) -> np.ndarray | None:
    """Converts nested lists to an array on the fast path; None if they need the general one."""
    if len(shape) > _MAX_DIMENSIONS:
        raise too_deep()
    flat = _flat(value, shape, dtype)
    return None if flat is None else _array(flat, shape, dtype)


def to_array(value: Any, dtype: tf.DType) -> np.ndarray:
    """Converts nested lists, or a bare value, to an array.

    Raises:
      RequestError: INVALID_ARGUMENT (ragged, or of another type), or UNIMPLEMENTED.
    """
    shape = _shape(value)
    array = _plain(value, shape, dtype)
    if array is None:
        flat: list[Any] = []
        _flatten(value, shape, 0, dtype, flat)
        array = _array(flat, shape, dtype)
    return array


def _plain_rows(
    instances: list[Any], inputs: Mapping[str, Any], objects: bool
) -> dict[str, np.ndarray] | None:
    """Converts rows to arrays by column on the fast path; None if they need the general one."""
    names = list(inputs)
    if objects:
        wanted = set(names)
        if any(type(row) is not dict or row.keys() != wanted for row in instances):
            return None
    arrays = {}
    for name in names:
        column = [row[name] for row in instances] if objects else instances
        array = _plain(column, _shape(column), tf.dtypes.as_dtype(inputs[name].dtype))
        if array is None:
            return None
        arrays[name] = array
    return arrays


def _row_inputs(
    instances: Any, document: Mapping[str, Any], signature: Any
) -> dict[str, np.ndarray]:
    # A plain dictionary: looking up a name that is not UTF-8 in a message's map fails.
    inputs = dict(signature.inputs)
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {show(document)} Expecting 'instances' to be an list/array")
    if not instances:
        raise invalid(f"JSON Value: {show(document)} No values in 'instances' array")

    def is_object(value: Any) -> bool:
        return isinstance(value, dict) and not _is_b64(value)

    objects = is_object(instances[0])
    if not objects and len(inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    plain = _plain_rows(instances, inputs, objects)
    if plain is not None:
        return plain
    # Row by row, so that errors name the row.
    rows: dict[str, list[np.ndarray]] = {name: [] for name in inputs}
    for i, row in enumerate(instances):
        if is_object(row) != objects:
            raise invalid(
                f"Expecting object but got list at item {i} of input list"
                if objects
                else f"Expecting value/list but got object at item {i} of input list"
            )
        values = row if objects else {next(iter(inputs)): row}
        for key in values:
            if key not in inputs:
                raise invalid(
                    f"Failed to process element: {i} key: {key} of 'instances' list. Error: "
                    f"INVALID_ARGUMENT: JSON object: does not have named input: {key}"
                )
        if set(values) != set(inputs):
            raise invalid(
                f"Failed to process element: {i} of 'instances' list. JSON object: {show(row)} "
                f"keys must be equal to: {','.join(sorted(inputs))}"
            )
        for name, value in values.items():
            dtype = tf.dtypes.as_dtype(inputs[name].dtype)
            try:
                array = to_array(value, dtype)
                first = rows[name][0] if rows[name] else array
                if array.size != first.size:
                    raise invalid(f"Expecting tensor size: {first.size} but got: {array.size}")
                if array.shape != first.shape:
                    a, b = (str(list(x.shape)).replace(" ", "") for x in (first, array))
                    raise invalid(f"Expecting shape {a} but got: {b}")
            except RequestError as error:
                raise invalid(
                    f"Failed to process element: {i} of 'instances' list. Error: "
                    f"{error.code.name}: {error.message}"
                ) from error
            rows[name].append(array)
    return {name: np.stack(arrays) for name, arrays in rows.items()}


def _column_inputs(value: Any, signature: Any) -> dict[str, np.ndarray]:
    inputs = signature.inputs
    dtypes = {name: tf.dtypes.as_dtype(info.dtype) for name, info in inputs.items()}
    objects = isinstance(value, dict) and not _is_b64(value)
    if not objects:
        if len(inputs) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        (name,) = inputs
        return {name: to_array(value, dtypes[name])}
    for name in sorted(inputs):
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: to_array(value[name], dtypes[name]) for name in inputs}


def predict_inputs(
    document: Mapping[str, Any], signature: Any, name: str
) -> tuple[bool, dict[str, np.ndarray]]:
    """Returns whether the request is in row form, and the arrays of its inputs.

    Raises:
      RequestError: the form or a value is wrong.
    """
    rows, columns = "instances" in document, "inputs" in document
    if rows and columns:
        raise invalid(
            f"JSON Value: {show(document)} Not formatted correctly expecting only one of 'inputs' "
            "or 'instances' keys to exist "
        )
    if not rows and not columns:
        raise invalid("Missing 'inputs' or 'instances' key")
    if not signature.inputs:
        raise invalid(f"Failed to get input map for signature: {name}")
    if rows:
        return True, _row_inputs(document["instances"], document, signature)
    return False, _column_inputs(document["inputs"], signature)


def numbers(array: np.ndarray) -> list[str]:
    """Formats floats with six digits, or with all digits if six do not give the same value."""
    kind = array.dtype.type
    flat = array.ravel()
    values = flat.tolist()
    texts = [f"{value:.6g}" for value in values]
    digits = ".9g" if kind is np.float32 else ".17g"
    with np.errstate(over="ignore"):
        same = np.array(list(map(float, texts))).astype(kind) == flat
    for i, (text, value) in enumerate(zip(texts, values, strict=True)):
        if math.isfinite(value):
            if not same[i]:
                text = format(value, digits)
            texts[i] = text if "." in text or "e" in text else text + ".0"
        else:
            texts[i] = "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return texts


def _texts(array: np.ndarray, as_bytes: bool) -> list[str]:
    """Returns the elements of an array as JSON, in order."""
    if array.dtype == object:
        values = array.ravel().tolist()
        if as_bytes:
            return [json.dumps({"b64": base64.b64encode(v).decode()}) for v in values]
        return [
            json.dumps(v.decode("utf-8", "surrogateescape"), ensure_ascii=False) for v in values
        ]
    if array.dtype.kind == "f":
        return numbers(array)
    if array.dtype.kind == "b":
        return ["true" if value else "false" for value in array.ravel().tolist()]
    return list(map(str, array.ravel().tolist()))


def _nested(array: np.ndarray, as_bytes: bool, keep: int = 0) -> list[str]:
    """Returns the JSON of the parts of an array along its first `keep` dimensions (0 or 1)."""
    texts = _texts(array, as_bytes)
    for axis in range(array.ndim - 1, keep - 1, -1):
        size = array.shape[axis]
        count = math.prod(array.shape[:axis])
        texts = [f"[{', '.join(texts[i * size : (i + 1) * size])}]" for i in range(count)]
    return texts


def _writable(name: str, array: np.ndarray) -> np.ndarray:
    dtype = tf.string if array.dtype == object else tf.dtypes.as_dtype(array.dtype)
    if dtype not in (*_FLOATS, *_INTEGERS, tf.bool, tf.string):
        raise invalid(f"Failed to write JSON value for tensor type: {dtype_word(dtype)}")
    return array


def predict_answer(row_form: bool, outputs: Mapping[str, np.ndarray]) -> bytes:
    """Returns the body of a response.

    Raises:
      RequestError: an output has no rows, or a dtype that JSON cannot represent.
    """
    texts: dict[str, Any] = {}
    batch: int | None = None
    for name, array in outputs.items():
        _writable(name, array)
        as_bytes = name.endswith("_bytes")
        if not row_form:
            (texts[name],) = _nested(array, as_bytes)
            continue
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if batch is not None and len(array) != batch:
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {batch}"
            )
        batch = len(array)
        texts[name] = _nested(array, as_bytes, keep=1)
    if not row_form:
        if len(texts) == 1:
            body = next(iter(texts.values()))
        else:
            body = "{" + ", ".join(f"{json.dumps(n)}: {t}" for n, t in texts.items()) + "}"
        return f'{{"outputs": {body}}}'.encode("utf-8", "surrogateescape")
    if len(texts) == 1:
        rows = next(iter(texts.values()))
    else:
        rows = [
            "{" + ", ".join(f"{json.dumps(n)}: {t[i]}" for n, t in texts.items()) + "}"
            for i in range(batch or 0)
        ]
    return f'{{"predictions": [{", ".join(rows)}]}}'.encode("utf-8", "surrogateescape")
