"""Where a number comes from: versions, commit, system, time."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

import poisonkit


@cache
def describe() -> dict[str, object]:
    """Return versions, system and time, as they were when this process first asked.

    The code that a process runs is the one it has loaded, not a later commit.
    """
    return {
        "poisonkit": poisonkit.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def checkout() -> Path | None:
    """Return the folder of the checkout that this package is used from, if it is from one."""
    folder = Path(__file__).resolve().parents[1]
    return folder if (folder / "pyproject.toml").exists() else None


def _commit() -> str:
    """Return the checkout's commit, with a plus sign when the package's files differ from it.

    Where the files were copied without their history, ``POISONKIT_COMMIT`` says it.
    """
    if told := os.environ.get("POISONKIT_COMMIT"):
        return told
    folder = checkout()
    if folder is None:
        return "unknown"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "poisonkit")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
