"""What of a configuration is written down, in records and in the names of what they share."""

from collections.abc import Iterator
from dataclasses import field, fields, is_dataclass
from typing import Any

_ADDED = "added"


def added(default: object) -> Any:
    """Return a field of a dataclass that it got after records had been made without it.

    At its default, which is what those records were made with, it is not written down. So
    they remain the records of the same configuration; and so the default must never change.
    """
    return field(default=default, metadata={_ADDED: True})


def written(options: Any) -> dict[str, Any]:
    """Return a dataclass's values by name, nested ones too, without :func:`added` defaults."""
    return dict(_written(options))


def _written(options: Any) -> Iterator[tuple[str, Any]]:
    for entry in fields(options):
        value = getattr(options, entry.name)
        if _ADDED in entry.metadata and value == entry.default:
            continue
        yield entry.name, written(value) if is_dataclass(value) else value


def default_of(options: Any, name: str) -> Any:
    """Return what a value is, or was in a record, that is not written down."""
    [entry] = [entry for entry in fields(options) if entry.name == name]
    return entry.default
