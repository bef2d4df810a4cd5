"""Where a number comes from: versions and machine."""

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

import poisonkit
from poisonkit.devices import name_of


def describe(device: torch.device) -> dict[str, object]:
    """Return the versions and the machine that a record is made with."""
    return {
        "poisonkit": poisonkit.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": name_of(device),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    """Return the checkout's commit, with a plus sign when files differ from it."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(folder))
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
