"""What the tests of the explorers use to move them, and to read what they say."""

from typing import Any

import pytest

widgets = pytest.importorskip("ipywidgets")


def controls(box: Any) -> dict[str, Any]:
    """All that can be moved, by its description."""
    found = {}
    for part in getattr(box, "children", ()):
        found |= {part.description: part} if getattr(part, "description", "") else {}
        found |= controls(part)
    return found


def status(box: Any) -> str:
    return next(part for part in box.children if isinstance(part, widgets.HTML)).value
