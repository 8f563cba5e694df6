"""Operations that a SavedModel needs beyond TensorFlow's own."""

from __future__ import annotations

from pathlib import Path

from tfrz.errors import InputError

# In a SavedModel's folder, written by the export where a stock server would lack operations.
REQUIRED_OPS = Path("assets") / "required_ops.txt"


def scann_problem() -> str | None:
    """Registers ScaNN's operations with this process, or else says why that is not possible."""
    try:
        import scann  # noqa: F401
    except ModuleNotFoundError:
        return "ScaNN is not installed"
    except Exception as error:
        # A wheel for another TensorFlow: its library lacks symbols.
        return f"ScaNN does not load beside this TensorFlow ({str(error).splitlines()[0]})"
    return None


def load_scann() -> None:
    """Registers ScaNN's operations with this process.

    Raises:
      InputError: they cannot be had.
    """
    problem = scann_problem()
    if problem is not None:
        raise InputError(
            f"the model needs ScaNN's operations, but {problem}: docs/install.md says where it runs"
        )


def load_required(saved_model: str | Path) -> None:
    """Registers what a SavedModel needs, if anything.

    Raises:
      InputError: it is not installed.
    """
    if (Path(saved_model) / REQUIRED_OPS).exists():
        load_scann()
