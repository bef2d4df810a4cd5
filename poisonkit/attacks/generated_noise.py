"""What a learned noise generator does to images; saving it, and reading it back."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from poisonkit.attacks.deep_confuse import add_noise
from poisonkit.bounds import levels, round_within
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.images import ImageSet, batches
from poisonkit.models import evaluating
from poisonkit.models.generators import GENERATORS, NoiseGenerator
from poisonkit.poison import Poison, clean_label_poison

FORMAT = 1


@torch.no_grad()
def noise_of(generator: NoiseGenerator, x: Tensor, *, batch_size: int = 500) -> Tensor:
    """Return the noise for uint8 images [N, C, H, W]: float32, within [-epsilon, epsilon]."""
    check_fit(generator, x)
    with evaluating(generator):
        return torch.cat([generator(batch) for batch in batches(x, batch_size=batch_size)])


def perturb(generator: NoiseGenerator, x: Tensor, *, batch_size: int = 500) -> Tensor:
    """Return uint8 images with the generator's noise added and rounded.

    Rounding to whole values never leads out of the epsilon-ball: where it would, the
    value stays one short of it.
    """
    limit = levels(generator.epsilon)
    out = []
    for chunk in x.split(batch_size):
        noise = noise_of(generator, chunk, batch_size=batch_size)
        out.append(round_within(add_noise(chunk.float() / 255, noise), chunk, limit=limit))
    return torch.cat(out)


def craft(
    train: ImageSet, generator: NoiseGenerator, *, share: float = 1.0, seed: int = 0
) -> Poison:
    """Replace a share of the training images by noisy ones; every label stays.

    Parameters
    ----------
    share : of all images, in (0, 1]; below 1 they are chosen at random by ``seed``.
    """
    rows = rows_to_perturb(train, share=share, seed=seed)
    changed = perturb(generator, train.x[rows])
    return clean_label_poison(changed, train, rows, epsilon=generator.epsilon)


def rows_to_perturb(train: ImageSet, *, share: float, seed: int) -> Tensor:
    """Return the rows of a share of the images, chosen at random by the seed, in order."""
    if not 0 < share <= 1:
        raise PoisonkitError(f"the share must lie in (0, 1], not {share}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator)
    return order[: round(share * len(train))].sort().values.to(train.device)


def check_fit(generator: NoiseGenerator, x: Tensor) -> None:
    """Refuse images that the generator cannot make noise for, naming both sides."""
    first = next(p for p in generator.parameters() if p.ndim == 4)
    wanted = first.shape[1]
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise PoisonkitError(
            f"images must be uint8 [N, C, H, W], values 0..255, not {x.dtype} {list(x.shape)}"
        )
    if x.shape[1] != wanted:
        raise PoisonkitError(
            f"the generator takes images of {wanted} channels, these have {x.shape[1]}"
        )
    if x.device != first.device:
        raise PoisonkitError(f"the generator is on {first.device}, the images are on {x.device}")


def save_generator(
    path: Path, generator: NoiseGenerator, *, name: str, channels: int, **options: int
) -> None:
    """Write a generator as one safetensors file.

    Parameters
    ----------
    name, channels, options : what it was built from, see
        :func:`poisonkit.models.generators.create_generator`.
    """
    if name not in GENERATORS:
        raise unknown("generator", name, GENERATORS)
    about = {
        "format": FORMAT,
        "generator": name,
        "channels": channels,
        "epsilon": generator.epsilon,
        "options": options,
    }
    state = {key: value.contiguous() for key, value in generator.state_dict().items()}
    save_file(state, path, metadata={"poisonkit": json.dumps(about)})


def load_generator(path: Path, *, device: torch.device | str = "cpu") -> NoiseGenerator:
    """Read back what :func:`save_generator` wrote, in eval mode."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("poisonkit", "null"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise PoisonkitError(f"{path} does not exist") from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise PoisonkitError(f"{path} is not a generator's file ({error})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise PoisonkitError(f"{path} is not a generator of this version")
    if about["generator"] not in GENERATORS:
        raise unknown("generator", about["generator"], GENERATORS)
    body = GENERATORS[about["generator"]](channels=about["channels"], **about["options"])
    generator = NoiseGenerator(body, epsilon=about["epsilon"])
    generator.load_state_dict(state)
    return generator.to(device).eval()
