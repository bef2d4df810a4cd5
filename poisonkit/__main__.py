"""``python -m poisonkit``."""

from poisonkit.cli import main

main()
