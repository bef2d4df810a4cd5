"""The book's two stages: execute the notebooks with papermill, then render what they left.

Executing and rendering are kept apart so that an executed notebook never enters git and the launch
buttons still point at the committed one: the staged copy below ``_build/src`` has the checkout's
relative paths. The libraries of the ``book`` extra are imported when first needed, never before.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from poisonkit import notebook as notebook_file
from poisonkit.data import data_root
from poisonkit.notebook import BookError, BookFailure, check_names, declared_parameters, load
from poisonkit.workers import process_pool, threads_of

__all__ = [
    "BookError",
    "BookFailure",
    "build",
    "declared_parameters",
    "execute",
    "find_root",
    "listed_pages",
    "notebooks",
    "render",
    "use_cache",
]

# What the driver itself asks of every notebook; one that only draws records may have neither.
COMMON_PARAMETERS = {"profile", "interactive"}
# What the rendered book is made of, beside the notebooks.
PAGES = ("_config.yml", "_toc.yml", "book", "README.md", "CONTRIBUTING.md", "CITATION.cff")


def find_root(start: Path | None = None) -> Path:
    """Return the checkout that holds the book, looked for from `start` (or here) upward."""
    begin = (start or Path.cwd()).resolve()
    for folder in (begin, *begin.parents, Path(__file__).resolve().parent.parent):
        if all((folder / name).exists() for name in ("_config.yml", "_toc.yml", "notebooks")):
            return folder
    raise BookError(
        f"no _config.yml, _toc.yml and notebooks/ in {begin} or above it: the book is part of the "
        "repository, not of the installed package. Clone the repository and run this inside it."
    )


def notebooks(root: Path, chapters: Sequence[str] = ()) -> list[Path]:
    """Return the notebooks of `chapters` (of all, and the top-level ones last) in the book's order.

    A chapter is the name of a folder below ``notebooks/``.
    """
    below = root / "notebooks"
    known = sorted({path.parent.name for path in below.glob("*/*.ipynb")})
    if unknown := [chapter for chapter in chapters if chapter not in known]:
        raise BookError(f"no chapter {', '.join(unknown)}; there are: {', '.join(known) or 'none'}")
    listed = listed_pages(load("yaml").safe_load((root / "_toc.yml").read_text(encoding="utf-8")))

    def order(path: Path) -> tuple[bool, int, str]:
        name = path.relative_to(root).with_suffix("").as_posix()
        position = listed.index(name) if name in listed else len(listed)
        return path.parent == below, position, name

    found = {path for chapter in chapters or known for path in (below / chapter).glob("*.ipynb")}
    if not chapters:
        found.update(below.glob("*.ipynb"))
    return sorted(found, key=order)


def use_cache(folder: str | Path | None) -> None:
    """Keep the records of later executions in `folder`; None leaves the user's cache in place.

    Data sets stay where they are, also those in the user's cache.
    """
    if folder is not None:
        os.environ["POISONKIT_DATA"] = str(data_root())
        os.environ["POISONKIT_CACHE"] = str(folder)


def execute(
    root: Path,
    destination: Path,
    *,
    chapters: Sequence[str] = (),
    parameters: Mapping[str, object],
    workers: int = 1,
    progress: bool = True,
) -> list[Path]:
    """Run the notebooks, each in its own folder of the checkout, so many at a time.

    Each notebook gets those of the `parameters` that it declares. Every name must be declared
    somewhere, but for ``profile`` and ``interactive``, which the command line always gives.
    A failure ends those that run beside it, too.

    Returns
    -------
    The executed notebooks, at the same relative paths below `destination`.
    """
    chosen = notebooks(root, chapters)
    declared = {path: declared_parameters(path) for path in chosen}
    known = set().union(*declared.values())
    check_names(parameters, known | COMMON_PARAMETERS, where="the choice of notebooks")
    cells = {path: notebook_file.code_cells(path) for path in chosen}
    bar = tqdm(
        total=sum(cells.values()),
        disable=not progress,
        dynamic_ncols=True,
        bar_format="{l_bar}{bar}| cell {n_fmt} of {total_fmt}, {elapsed}",
    )

    def job(path: Path) -> dict[str, Any]:
        name = path.relative_to(root)
        values = {key: parameters[key] for key in parameters if key in declared[path]}
        return {"target": destination / name, "name": str(name), "values": values}

    with bar:
        if workers == 1:
            for path in chosen:
                bar.set_description(str(path.relative_to(root / "notebooks").with_suffix("")))
                end = bar.n + cells[path]
                counted: dict[str, Any] = {
                    "on_cell_executed": lambda end=end, **_: bar.update(int(bar.n < end))
                }
                _run(path, **job(path), **counted)
                bar.update(end - bar.n)
        else:
            threads = threads_of(workers)
            # Of the parent, since a worker that is made to end leaves its own behind; and a kernel
            # that outlives it by a second may still be writing.
            temporary = tempfile.TemporaryDirectory(prefix="pk", ignore_cleanup_errors=True)
            with temporary as below, process_pool(workers) as pool:
                pending = {
                    pool.submit(_run, p, threads=threads, below=below, **job(p)): p for p in chosen
                }
                for number, done in enumerate(as_completed(pending), start=1):
                    done.result()
                    bar.set_description(f"{number} of {len(chosen)} notebooks")
                    bar.update(cells[pending[done]])
    return [destination / path.relative_to(root) for path in chosen]


def _run(
    path: Path, *, threads: int | None = None, below: str | None = None, **options: Any
) -> None:
    with notebook_file.kernel_settings(threads=threads, below=below) as settings:
        notebook_file.run(path, **options, **settings)


def build(
    root: Path,
    *,
    chapters: Sequence[str] = (),
    parameters: Mapping[str, object],
    workers: int = 1,
    progress: bool = True,
    log: Callable[[str], object] = print,
) -> Path:
    """Execute the notebooks (of `chapters`, if given) and render the whole book.

    Notebooks that were not chosen appear as an earlier build left them, else without their figures.

    Returns
    -------
    The path of the book's first page.
    """
    source = root / "_build" / "src"
    _stage_pages(root, source, keep_executed=bool(chapters))
    executed = execute(
        root, source, chapters=chapters, parameters=parameters, workers=workers, progress=progress
    )
    for path in notebooks(root):
        _stage_if_not_run(path, source / path.relative_to(root))
    # Rendering with execution off would take a notebook that ended in an error for a good one.
    staged = [source / path.relative_to(root) for path in notebooks(root)]
    if failed := [path.name for path in staged if notebook_file.has_error(path)]:
        raise BookFailure("notebooks with an error in their outputs: " + ", ".join(failed))
    log(f"{len(executed)} notebooks executed; rendering the book...")
    return render(root, source)


def render(root: Path, source: Path) -> Path:
    """Render the staged `source` into ``_build/html`` of `root`; any warning is an error."""
    load("jupyter_book")
    output = root / "_build"
    for stale in ("html", ".doctrees"):
        shutil.rmtree(output / stale, ignore_errors=True)
    start = "from jupyter_book.cli.main import main; main()"
    options = ["--path-output", str(root), "-W", "-n", "--keep-going"]
    finished = subprocess.run(
        [sys.executable, "-c", start, "build", str(source), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = re.sub(r"\x1b\[[0-9;]*m", "", finished.stdout + finished.stderr).splitlines()
    output.mkdir(parents=True, exist_ok=True)
    (output / "render.log").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if finished.returncode:
        told = [line for line in lines if "WARNING:" in line or "ERROR:" in line] or lines[-20:]
        told = [line.replace(f"{source}/", "") for line in told]
        message = ["the book did not render:", *told, f"the whole log: {output / 'render.log'}"]
        raise BookFailure("\n  ".join(message))
    return output / "html" / "index.html"


def _stage_pages(root: Path, source: Path, *, keep_executed: bool) -> None:
    """Copy the prose and the settings, dropping what an earlier build staged."""
    source.mkdir(parents=True, exist_ok=True)
    for stale in source.iterdir():
        if stale.is_file():
            stale.unlink()
        elif not (keep_executed and stale.name == "notebooks"):
            shutil.rmtree(stale)
    for name in PAGES:
        if (root / name).is_dir():
            shutil.copytree(root / name, source / name)
        elif (root / name).exists():
            shutil.copy2(root / name, source / name)


def _stage_if_not_run(path: Path, target: Path) -> None:
    """Put the notebook without its figures where no execution, of now or before, left one."""
    if notebook_file.was_executed(target):
        return
    notebook = notebook_file.read(path)
    notebook_file.mark_not_run(notebook)
    target.parent.mkdir(parents=True, exist_ok=True)
    load("nbformat").write(notebook, target)


def listed_pages(entry: Any) -> list[str]:
    """Return the pages named anywhere below an entry of the table of contents, in order."""
    if isinstance(entry, list):
        return [name for part in entry for name in listed_pages(part)]
    if not isinstance(entry, dict):
        return []
    own = [str(entry[key]) for key in ("root", "file") if key in entry]
    return own + [name for part in entry.values() for name in listed_pages(part)]
