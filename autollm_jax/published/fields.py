"""Reads single fields of a config.json or a GGUF header, and refuses unsupported fields.

A model file states its shape in named fields. Some of them change the model's outputs, so every
field is read, compared with the only value that this model computes, listed as harmless, or refused
by name.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from autollm_jax.errors import UserError, one_line

LARGEST = 2**20  # the largest size of a model; a damaged file states more
_SHOWN = 60  # characters of a value in a message


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn the errors of the functions below into a UserError that names the file."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{where}: field {error} is missing") from error
    except ValueError as error:
        raise UserError(f"{where}: {one_line(error)}") from error


def size(values: Mapping, name: str, default: int | None = None) -> int:
    """Read a size: a whole number from 1 to `LARGEST`.

    Args:
      values: all fields.
      name: the field's name.
      default: stands in where the field is missing or null.

    Raises:
      KeyError: the field is missing and has no default.
      ValueError: the field is not a size.
    """
    value = _value(values, name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise ValueError(
            f"{name} is {shown(value)}; accepted is a whole number from 1 to {LARGEST:,}"
        )
    return value


def number(values: Mapping, name: str, default: float | None = None) -> float:
    """Read a positive finite number; arguments and errors as in `size`."""
    value = _value(values, name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ValueError(f"{name} is {shown(value)}; accepted is a positive number")
    return float(value)


def check_known(values: Mapping, known: Collection[str], only: Mapping[str, tuple]) -> None:
    """Refuse every field that could change the model's outputs and is not computed here.

    A null states nothing and is accepted.

    Args:
      values: all fields.
      known: names of the fields that are read elsewhere or change no output.
      only: for each further field the values that this model computes.

    Raises:
      ValueError: a field is neither known nor in `only`, or has another value.
    """
    for name, value in values.items():
        if value is None or name in known:
            continue
        if name not in only:
            raise ValueError(
                f"field {name} ({shown(value)}) is not known here and may change the model's "
                "outputs; delete it only if it does not"
            )
        if not any(value == accepted for accepted in only[name]):
            accepted = " or ".join(map(repr, only[name]))
            raise ValueError(f"{name}={shown(value)} is not supported; accepted is {accepted}")


def shown(value: Any) -> str:
    """Spell a value for a message, cut to one short line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _value(values: Mapping, name: str, default: Any) -> Any:
    value = values.get(name)
    if value is None:
        value = default
    if value is None:
        raise KeyError(name)
    return value
