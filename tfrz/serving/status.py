"""Errors of a request: a canonical code and a message that clients may match."""

from __future__ import annotations

import grpc

_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_GRPC_LIMIT = 1024


class RequestError(Exception):
    """A request that fails with a status.

    Args:
      code: the canonical code.
      message: without the code's name.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def http_status(self) -> int:
        """The HTTP status of the code."""
        return _HTTP.get(self.code, 500)

    @property
    def grpc_message(self) -> str:
        """The message as gRPC sends it: truncated after 1,024 bytes."""
        data = self.message.encode()
        if len(data) <= _GRPC_LIMIT:
            return self.message
        return data[:_GRPC_LIMIT].decode("utf-8", "ignore") + "...TRUNCATED"


def invalid(message: str) -> RequestError:
    """Returns an INVALID_ARGUMENT error."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> RequestError:
    """Returns a NOT_FOUND error."""
    return RequestError(grpc.StatusCode.NOT_FOUND, message)


def code_name(code: grpc.StatusCode | int) -> str:
    """Returns the name of a code or of its number: `OK`, `NOT_FOUND`, ..."""
    number = code if isinstance(code, int) else code.value[0]
    return next((one.name for one in grpc.StatusCode if one.value[0] == number), "UNKNOWN")
