"""One notebook file: what it declares, how it is run, and how the executed one is tidied.

The libraries of the ``book`` extra are imported when first needed: records are made without them.
"""

import ast
import contextlib
import importlib
import itertools
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from poisonkit.errors import PoisonkitError

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
NOT_RUN = (
    "```{note}\nThis notebook was not run in this build, so its figures are missing here. "
    "`make book` runs all of them.\n```"
)


class BookError(PoisonkitError):
    """The book cannot be made as asked; the message says why and what would work."""


class BookFailure(BookError):
    """A notebook ended in an error, or a page did not render."""


def load(module: str) -> Any:
    """Import a module of the ``book`` extra, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise BookError(
            f'{error.name} is not installed; in the checkout: pip install -e ".[book]"'
        ) from error


def read(path: Path) -> Any:
    """Read a notebook file."""
    nbformat = load("nbformat")
    try:
        return nbformat.read(path, as_version=4)
    except nbformat.reader.NotJSONError as error:
        raise BookError(f"{path}: not a notebook, or cut short while it was written") from error


def declared_parameters(path: Path) -> dict[str, str]:
    """Return the names in the ``parameters`` cell with the source text of their defaults."""
    declared: dict[str, str] = {}
    for cell in read(path).cells:
        if "parameters" in cell.metadata.get("tags", []):
            try:
                assigned = _assignments(cell.source)
            except SyntaxError as error:
                raise BookError(f"{path}: its parameters cell is not plain Python") from error
            declared |= {name: ast.unparse(value) for name, value in assigned}
    return declared


def check_names(parameters: Iterable[str], known: Iterable[str], *, where: str) -> None:
    """Raise `BookError` if one of the `parameters` is not among the `known` names."""
    if unknown := sorted(set(parameters) - set(known)):
        listed = ", ".join(sorted(known)) or "none"
        raise BookError(f"{where} has no parameter {', '.join(unknown)}; there are: {listed}")


def code_cells(path: Path) -> int:
    """Count the cells that an execution goes through."""
    return sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in read(path).cells)


def has_error(path: Path) -> bool:
    """Tell whether a cell of the notebook ended in an error."""
    outputs = (output for cell in read(path).cells for output in cell.get("outputs", []))
    return any(output.output_type == "error" for output in outputs)


def was_executed(path: Path) -> bool:
    """Tell whether the file is a notebook that papermill ran to its end."""
    return path.exists() and "papermill" in read(path).metadata and not has_error(path)


def run(
    path: Path, target: Path, *, name: str, values: Mapping[str, object], **settings: Any
) -> None:
    """Execute one notebook into `target`, which exists only once the run has come to its end."""
    papermill, nbformat = load("papermill"), load("nbformat")
    failures = (load("papermill.exceptions").PapermillException, RuntimeError)
    # It guesses at the types in parameter cells and warns of each line that it cannot guess.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    unfinished = target.with_suffix(".unfinished.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        notebook = papermill.execute_notebook(
            path,
            unfinished,
            parameters=values,
            kernel_name="python3",
            language="python",
            cwd=path.parent,
            progress_bar=False,
            **settings,
        )
    except failures as error:
        last = [line for line in str(error).splitlines() if line.strip()][-1:]
        message = f"{name} failed: {''.join(last)}\n  as far as it got: {unfinished}"
        raise BookFailure(message) from error
    tidy(notebook, values=values)
    nbformat.write(notebook, target)
    unfinished.unlink()


@contextlib.contextmanager
def kernel_settings(
    *, threads: int | None = None, below: str | None = None
) -> Iterator[dict[str, Any]]:
    """Give kernels inline figures, no progress bars, and a transport only this user can reach.

    Parameters
    ----------
    threads : that torch computes with in a kernel; None leaves it to torch.
    below : folder for the one with the kernels' connections; None is the system's own.
    """
    environment = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "TQDM_DISABLE": "1",  # a bar's last state is noise on a page
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    for variable in ("POISONKIT_DATA", "POISONKIT_CACHE"):
        if folder := os.environ.get(variable):  # maybe relative, and kernels start elsewhere
            environment[variable] = str(Path(folder).expanduser().resolve())
    manager = load("poisonkit.kernels").UninterruptedKernelManager
    before = os.environ.copy()
    with tempfile.TemporaryDirectory(prefix="pk", dir=below) as own:
        kernel = {"connection_file": f"{own}/kernel.json"}
        # A socket's path must stay below about 100 characters; where it would not, TCP still works.
        if os.name == "posix" and len(own) < 80:
            kernel |= {"transport": "ipc", "ip": f"{own}/k"}
        options = {"NotebookClient": {"kernel_manager_class": manager}, "KernelManager": kernel}
        os.environ.update(environment)
        try:
            yield {"config": load("traitlets.config").Config(options)}
        finally:
            os.environ.clear()
            os.environ.update(before)


def tidy(notebook: Any, *, values: Mapping[str, object]) -> None:
    """Make an executed notebook fit for the book, in place.

    papermill leaves the default parameters and a second cell that overrides them. One cell with
    the values used stays, folded, so that the downloaded notebook repeats the run. Live widgets
    need a kernel, and papermill's notes name folders of this machine: neither is kept.
    """
    cells = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in tags:
            continue
        if "parameters" in tags:
            cell.source = write_values(cell.source, values)
            cell.metadata["tags"] = [*tags, *({"hide-input"} - set(tags))]
            cell.metadata["mystnb"] = {
                "code_prompt_show": "Show the parameters",
                "code_prompt_hide": "Hide the parameters",
            }
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET_VIEW not in o.get("data", {})]
        cells.append(cell)
    notebook.cells = cells
    notes = notebook.metadata.get("papermill", {})
    kept = {name: notes[name] for name in ("duration", "version") if name in notes}
    notebook.metadata["papermill"] = {**kept, "parameters": dict(values)}
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook.metadata.pop("widgets", None)


def write_values(source: str, values: Mapping[str, object]) -> str:
    """Return the source with the assigned values replaced and all else, comments too, as it was."""
    text = source.encode()  # the positions that ast gives count bytes
    starts = [0, *itertools.accumulate(len(line) for line in text.splitlines(keepends=True))]
    for name, value in reversed(_assignments(source)):
        if name in values:
            assert value.end_lineno is not None
            assert value.end_col_offset is not None
            begin = starts[value.lineno - 1] + value.col_offset
            end = starts[value.end_lineno - 1] + value.end_col_offset
            text = text[:begin] + repr(values[name]).encode() + text[end:]
    return text.decode()


def mark_not_run(notebook: Any) -> None:
    """Say below the title of a notebook, in place, that this build has not run it."""
    note = load("nbformat").v4.new_markdown_cell(NOT_RUN)
    if notebook.nbformat_minor < 5:
        note.pop("id", None)
    notebook.cells.insert(1, note)
    # An execution would have told the renderer how to colour the code.
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}


def _assignments(source: str) -> list[tuple[str, ast.expr]]:
    """Return the plain assignments at the top level, in order, as (name, value)."""
    found = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            target, value = statement.targets[0], statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target, value = statement.target, statement.value
        else:
            continue
        if isinstance(target, ast.Name):
            found.append((target.id, value))
    return found
