"""What the explorers share: where they look, a button that works, and a figure that changes."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.core.pylabtools import print_figure
from matplotlib.figure import Figure

from poisonkit.devices import choose_device
from poisonkit.errors import PoisonkitError
from poisonkit.experiments.networks import Context
from poisonkit.store import default_store


def context_of(device: str, data_root: Path | None) -> Context:
    return Context(store=default_store(), device=str(choose_device(device)), data_root=data_root)


def new_button(text: str) -> Any:
    return widgets.Button(
        description=text, button_style="primary", layout=widgets.Layout(width="auto")
    )


def on_press(button: Any, status: widgets.HTML, work: Callable[[], None], *, at_once: bool) -> None:
    """Let a button do its work, disabled meanwhile; an error goes to the status line."""

    def press(_: object = None) -> None:
        button.disabled = True
        try:
            work()
        except PoisonkitError as error:
            status.value = message(error)
        finally:
            button.disabled = False

    button.on_click(press)
    if at_once:
        press()


def message(error: PoisonkitError) -> str:
    return f"<b>{escape(str(error))}</b>"


def show(output: widgets.Output, figure: Figure) -> None:
    """Put a figure in the place of what an output shows.

    It is written into the output's state. What is *displayed* within an output is answered by
    the client that runs a notebook, which may then miss that the cell has ended, and wait for it
    without end: https://github.com/jupyter/nbclient/issues/312.
    """
    picture = print_figure(figure, fmt="png", base64=True)
    output.outputs = (
        {"output_type": "display_data", "data": {"image/png": picture}, "metadata": {}},
    )
