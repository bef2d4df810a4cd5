"""Files and folders that appear whole or not at all, by renaming."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poisonkit.errors import PoisonError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give another place to write to; it becomes ``path`` unless something fails.

    The place is the process's own, so that two may write the same file at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give another folder to write a poison to; it becomes ``folder`` unless something fails.

    Raises
    ------
    PoisonError
        If ``folder`` exists and is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise PoisonError(f"{folder} is not empty; give a new folder")
    partial = folder.with_name(folder.name + ".partial")
    # One that was killed while it wrote may have left its own.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
