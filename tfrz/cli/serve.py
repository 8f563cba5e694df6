"""`tfrz serve`: the local server that speaks TF Serving's protocols."""

from __future__ import annotations

from collections.abc import Sequence

HELP = "serve a SavedModel over gRPC and REST, as TF Serving would"


def main(arguments: Sequence[str]) -> int:
    """Serves until it is told to stop. TF Serving's flags are not read as others are."""
    from tfrz.serving.__main__ import main as serve

    return serve(arguments)
