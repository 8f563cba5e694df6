"""The errors that the command line turns into one line and exit status 2."""

from __future__ import annotations


class InputError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do about it."""


class BackendError(InputError, ImportError):
    """Keras runs on another backend than TensorFlow."""


class ConfigError(InputError):
    """A configuration value that is unknown, of the wrong type or out of its range."""
