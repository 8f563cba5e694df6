"""TensorProtos: accepts every encoding that clients write, and writes the one that they read."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from tfrz.serving.status import invalid

_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int64: "int64_val",
    tf.bool: "bool_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
    tf.int32: "int_val",
    tf.int16: "int_val",
    tf.uint16: "int_val",
    tf.int8: "int_val",
    tf.uint8: "int_val",
}


def from_proto(name: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """Returns the array of a TensorProto.

    Raises:
      RequestError: INVALID_ARGUMENT, it cannot be decoded.
    """
    try:
        array = tf.make_ndarray(proto)
        if proto.dtype == 0:
            raise ValueError("no dtype")
    except (TypeError, ValueError, KeyError) as error:
        raise invalid(f"tensor parsing error: {name}") from error
    return array


def to_proto(
    array: np.ndarray, into: tensor_pb2.TensorProto | None = None
) -> tensor_pb2.TensorProto:
    """Returns a TensorProto with one entry per element in the typed field.

    `tf.make_tensor_proto` writes `tensor_content`, but clients read `float_val`.
    """
    proto = tensor_pb2.TensorProto() if into is None else into
    if array.dtype == object or array.dtype.kind in "SU":
        proto.dtype = tf.string.as_datatype_enum
        proto.string_val.extend(
            v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist()
        )
    else:
        dtype = tf.dtypes.as_dtype(array.dtype)
        proto.dtype = dtype.as_datatype_enum
        flat = array.ravel()
        if dtype in (tf.float16, tf.bfloat16):
            proto.half_val.extend(flat.view(np.uint16).tolist())
        elif dtype.is_complex:
            pairs = flat.view(flat.real.dtype).tolist()
            field = proto.scomplex_val if dtype == tf.complex64 else proto.dcomplex_val
            field.extend(pairs)
        else:
            getattr(proto, _FIELDS[dtype]).extend(flat.tolist())
    # Also for a scalar the shape is known: it has no dimensions.
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    return proto
