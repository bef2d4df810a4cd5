"""The committed notebooks: clean, parameterised and readable before anything is run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")

CHECKOUT = Path(__file__).resolve().parent.parent
BELOW = CHECKOUT / "notebooks"
# Hidden folders hold an editor's checkpoints, not ours.
PATHS = sorted(
    path
    for path in BELOW.rglob("*.ipynb")
    if not any(part.startswith(".") for part in path.relative_to(BELOW).parts)
)
CHAPTER_PATHS = [path for path in PATHS if path.parent != BELOW]


def name(path: Path) -> str:
    return path.relative_to(BELOW).with_suffix("").as_posix()


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


every_notebook = pytest.mark.parametrize("path", PATHS, ids=name)
every_chapter_notebook = pytest.mark.parametrize("path", CHAPTER_PATHS, ids=name)


@every_notebook
def test_is_valid(path: Path) -> None:
    nbformat.validate(read(path))


@every_notebook
def test_begins_with_its_title(path: Path) -> None:
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")


@every_notebook
def test_is_committed_without_outputs(path: Path) -> None:
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell.source for cell in code if cell.outputs or cell.execution_count is not None]
    assert not {"widgets", "papermill"} & set(notebook.metadata)


@every_notebook
def test_runs_on_any_python3_kernel(path: Path) -> None:
    kernel = read(path).metadata.get("kernelspec", {})
    assert kernel.get("name") == "python3"


@every_chapter_notebook
def test_has_one_cell_of_parameters_with_the_common_ones(path: Path) -> None:
    from poisonkit.notebook import declared_parameters

    cells = read(path).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0].cell_type == "code"
    assert {"profile", "seed", "device"} <= set(declared_parameters(path))


@every_chapter_notebook
def test_papermill_reads_the_same_parameters(path: Path) -> None:
    papermill = pytest.importorskip("papermill")
    from poisonkit.notebook import declared_parameters

    assert set(papermill.inspect_notebook(path)) == set(declared_parameters(path))


def test_every_notebook_of_the_contents_is_there() -> None:
    from poisonkit import book

    assert set(book.notebooks(CHECKOUT)) == set(PATHS)
    yaml = pytest.importorskip("yaml")
    contents = yaml.safe_load((CHECKOUT / "_toc.yml").read_text(encoding="utf-8"))
    listed = {page for page in book.listed_pages(contents) if page.startswith("notebooks/")}
    assert listed == {f"notebooks/{name(path)}" for path in PATHS}


def test_notebooks_pass_the_linter() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", str(BELOW)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CHECKOUT)
    assert finished.returncode == 0, finished.stdout
