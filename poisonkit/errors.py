"""The errors that poisonkit raises for a user's mistake, never for a bug of its own."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

_Value = TypeVar("_Value")


class PoisonkitError(ValueError):
    """Something asked for cannot be done; the message says what and what would work."""


class DataError(PoisonkitError):
    """A data set is missing, incomplete, corrupt or does not fit the request."""


class PoisonError(PoisonkitError):
    """A poison breaks the bound, the labels or the threat model that it promises."""


def unknown(kind: str, name: object, known: Iterable[object]) -> PoisonkitError:
    """Return the error for a name that does not exist, listing those that do."""
    listed = ", ".join(str(entry) for entry in known)
    return PoisonkitError(f"unknown {kind} {name!r}; known: {listed}")


def look_up(kind: str, name: str, known: Mapping[str, _Value]) -> _Value:
    """Return what a name stands for; one that does not exist is an :func:`unknown` error."""
    if name not in known:
        raise unknown(kind, name, known)
    return known[name]
