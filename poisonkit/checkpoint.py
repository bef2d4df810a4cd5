"""The state of a training between two of its parts, as one safetensors file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from poisonkit.errors import PoisonkitError
from poisonkit.files import whole_file


def save(
    path: str | Path,
    model: nn.Module,
    optimizer: optim.Optimizer,
    history: Sequence[dict[str, Any]],
    run: str,
) -> None:
    """Write the state whole or not at all.

    Parameters
    ----------
    history : what is to be remembered of each part that is done, as JSON values.
    run : says which training this is; only the same text gets the state back.
    """
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"optimizer.{index}.{key}"] = value
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    with whole_file(Path(path)) as partial:
        save_file(tensors, partial, metadata={"history": json.dumps(history), "run": run})


def restore(
    path: str | Path | None, model: nn.Module, optimizer: optim.Optimizer, run: str
) -> list[dict[str, Any]]:
    """Put model and optimizer back into the state that was saved, and return the history.

    Without a path, or where there is no file yet, both are left as they are.

    Raises
    ------
    PoisonkitError
        If the file is damaged or of another run.
    """
    if path is None or not Path(path).exists():
        return []
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise PoisonkitError(f"checkpoint {path} is damaged ({error}); remove it") from error
    if metadata["run"] != run:
        raise PoisonkitError(
            f"{path} is a checkpoint of another run (other images, settings or seed); "
            "remove it or name another file"
        )
    history: list[dict[str, Any]] = json.loads(metadata["history"])
    prefix = "model."
    model.load_state_dict(
        {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
    )
    saved = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**saved, "state": state})
    for parameter, own in optimizer.state.items():
        for name, value in own.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # Fused optimisers want it to lie in memory as the weights do.
                own[name] = torch.empty_like(parameter).copy_(value)
    return history
