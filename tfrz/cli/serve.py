"""`tfrz serve`: the local server that speaks TF Serving's protocols."""

from __future__ import annotations

from collections.abc import Sequence

HELP = "serve SavedModels over gRPC and REST, as TF Serving does"


def main(arguments: Sequence[str]) -> int:
    """Serves until the process gets a signal; the server parses TF Serving's flags itself."""
    from tfrz.serving.__main__ import main as serve

    return serve(arguments)
