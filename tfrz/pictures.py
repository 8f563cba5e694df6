"""Pictures without a display: figures of matplotlib, written as PNG files."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tfrz.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def picture(path: str | os.PathLike[str], width: float, height: float) -> Iterator[Figure]:
    """Yields a figure to draw into, and writes it when the block ends well.

    Args:
      path: of the PNG file.
      width: in inches.
      height: in inches.

    Raises:
      InputError: the disk refuses to be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    atomic_write(path, out.getvalue())
