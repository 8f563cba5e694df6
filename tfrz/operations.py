"""Operations that a SavedModel needs beyond TensorFlow's own."""

from __future__ import annotations

from pathlib import Path

from tfrz.errors import InputError

# In a SavedModel's folder, written by the export where a stock server would lack operations.
REQUIRED_OPS = Path("assets") / "required_ops.txt"


def load_scann() -> None:
    """Registers ScaNN's operations with this process.

    Raises:
      InputError: it is not installed.
    """
    try:
        import scann  # noqa: F401
    except ImportError as error:
        raise InputError("the model needs ScaNN's operations: pip install 'tfrz[scann]'") from error


def load_required(saved_model: str | Path) -> None:
    """Registers what a SavedModel needs, if anything.

    Raises:
      InputError: it is not installed.
    """
    if (Path(saved_model) / REQUIRED_OPS).exists():
        load_scann()
