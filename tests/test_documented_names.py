"""What the documentation and the docstrings name is there."""

import ast
import importlib
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from poisonkit.experiments import EXPERIMENTS

CHECKOUT = Path(__file__).resolve().parent.parent
PAGES = [
    CHECKOUT / "README.md",
    CHECKOUT / "CONTRIBUTING.md",
    *sorted((CHECKOUT / "book").glob("*.md")),
    *sorted((CHECKOUT / "notebooks").glob("*/*.ipynb")),
]
SOURCES = sorted((CHECKOUT / "poisonkit").rglob("*.py"))


def resolved(name: str) -> object:
    """What a dotted name stands for, its longest importable part being a module."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if part in getattr(found, "__dataclass_fields__", {}):
                break  # without a default it is no attribute of the class
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def imported(text: str) -> Iterator[str]:
    """The names that the Python blocks of a page import from the package."""
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("poisonkit"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_what_a_page_names_and_imports_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    quoted = re.findall(r"`(poisonkit(?:\.\w+)+)(?:\([^`]*\))?`", text)
    for name in {*quoted, *imported(text)}:
        resolved(name)
    for path in set(re.findall(r"`((?:poisonkit|tests|benchmarks|notebooks)/[\w/.]+)`", text)):
        assert "PAPER" in path or "NAME" in path or (CHECKOUT / path).exists(), path


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_what_a_docstring_refers_to_exists(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    module = ".".join(source.relative_to(CHECKOUT).with_suffix("").parts)
    module = module.removesuffix(".__init__")
    for name in set(re.findall(r":(?:func|class|meth|attr|data|mod):`~?\.?([\w.]+)`", text)):
        if name.startswith("poisonkit"):
            resolved(name)
        elif not name.startswith(("torch", "numpy", "matplotlib", "functools", "Figure")):
            resolved(f"{module}.{name}")


def commands(text: str) -> Iterator[list[str]]:
    """The calls of the command line in a page's blocks of shell commands, indented ones too."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    for line in lines:
        if line.strip().startswith("poisonkit "):
            yield shlex.split(line.strip(), comments=True)


WRITTEN = [page for page in PAGES if page.suffix == ".md"]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda path: path.name)
def test_what_a_page_runs_can_be_configured(page: Path) -> None:
    for _, command, *arguments in commands(page.read_text(encoding="utf-8")):
        if command not in ("run", "verify") or not arguments[0].islower():
            continue
        name, *rest = arguments
        pairs = itertools.pairwise(rest)
        given = [(key, value) for key, value in pairs if key.startswith("--")]
        options = dict(value.split("=", 1) for key, value in given if key == "--set")
        options |= {key[2:]: value for key, value in given if key == "--profile"}
        assert EXPERIMENTS[name].configure(**options)
