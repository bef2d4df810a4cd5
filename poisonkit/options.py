"""What of a configuration is written down, in records and in the names of what they share."""

from collections.abc import Iterator
from dataclasses import field, fields, is_dataclass
from typing import Any

_ADDED = "added"


def added(default: object) -> Any:
    """Return a field of a dataclass that it got after records had been made without it.

    At its default, which is what those records were made with, it is not written down. So
    they remain the records of the same configuration.
    """
    return field(default=default, metadata={_ADDED: True})


def stated(options: Any) -> dict[str, Any]:
    """Return a dataclass's values by name, nested ones too, without :func:`added` defaults."""
    return dict(_stated(options))


def _stated(options: Any) -> Iterator[tuple[str, Any]]:
    for entry in fields(options):
        value = getattr(options, entry.name)
        if is_dataclass(value):
            yield entry.name, stated(value)
        elif _ADDED not in entry.metadata or value != entry.default:
            yield entry.name, value
