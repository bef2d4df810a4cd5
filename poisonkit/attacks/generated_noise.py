"""What a learned noise generator does to images; saving it, and reading it back."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from poisonkit.attacks.deep_confuse import add_noise
from poisonkit.bounds import levels, round_within
from poisonkit.data import image_files, read_image
from poisonkit.devices import choose_device
from poisonkit.errors import PoisonkitError
from poisonkit.files import whole_folder
from poisonkit.images import ImageSet, batches
from poisonkit.models import evaluating
from poisonkit.models.generators import NoiseGenerator, build_generator, check_shape
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
    check_fit(generator, x)
    return torch.cat([_perturb(generator, chunk) for chunk in x.split(batch_size)])


@torch.no_grad()
def _perturb(generator: NoiseGenerator, x: Tensor) -> Tensor:
    images = x.float() / 255
    with evaluating(generator):
        noisy = add_noise(images, generator(images))
    return round_within(noisy, x, limit=levels(generator.epsilon))


def perturb_folder(generator: NoiseGenerator, folder: str | Path, out: str | Path) -> int:
    """Perturb every image in a folder and below it, whatever the sizes, and return how many.

    Each is written at its place below ``out``, which must be empty or new, as PNG, since a
    format with losses would not keep the bound. Images become grey or coloured, as the
    generator has it. After an error ``out`` is as it was.

    Raises
    ------
    PoisonkitError
        If there are no images, if one cannot be read or does not fit the generator, or if two
        would get the same name.
    """
    folder, out = Path(folder), Path(out)
    first = next(generator.parameters())
    mode = "L" if first.shape[1] == 1 else "RGB"
    fitting = set[torch.Size]()
    with whole_folder(out) as partial:
        paths = image_files(folder)
        if not paths:
            raise PoisonkitError(f"no images in {folder}")
        names = [path.relative_to(folder).with_suffix(".png") for path in paths]
        if twice := {str(out / name) for name in names if names.count(name) > 1}:
            raise PoisonkitError(f"several images would become {min(twice)}; rename one of them")
        for path, name in zip(paths, names, strict=True):
            pixels = np.asarray(read_image(path, mode=mode))
            x = torch.tensor(pixels, device=first.device).reshape(*pixels.shape[:2], -1)
            x = x.permute(2, 0, 1)[None]
            # The check makes noise for a blank image: as much work as the image itself.
            if x.shape not in fitting:
                check_fit(generator, x)
                fitting.add(x.shape)
            noisy = _perturb(generator, x)[0].permute(1, 2, 0)
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy.cpu().numpy().squeeze()).save(partial / name)
    return len(paths)


def craft(
    train: ImageSet, generator: NoiseGenerator, *, share: float = 1.0, seed: int = 0
) -> Poison:
    """Replace a share of the training images by noisy ones; every label stays.

    Parameters
    ----------
    share : of all images, in (0, 1] and at least one image; below 1 they are chosen at random
        by ``seed``.
    """
    rows = rows_to_perturb(train, share=share, seed=seed)
    changed = perturb(generator, train.x[rows])
    return clean_label_poison(changed, train, rows, epsilon=generator.epsilon)


def rows_to_perturb(train: ImageSet, *, share: float, seed: int) -> Tensor:
    """Return the rows of a share of the images, chosen at random by the seed, in order."""
    if not 0 < share <= 1:
        raise PoisonkitError(f"the share must lie in (0, 1], not {share}")
    count = round(share * len(train))
    if count < 1:
        raise PoisonkitError(f"a share of {share} of {len(train)} images is none of them")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator)
    return order[:count].sort().values.to(train.device)


def check_fit(generator: NoiseGenerator, x: Tensor) -> None:
    """Refuse images that the generator cannot make noise for, naming both sides."""
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise PoisonkitError(
            f"images must be uint8 [N, C, H, W], values 0..255, not {x.dtype} {list(x.shape)}"
        )
    check_shape(generator, x.shape[1:])
    device = next(generator.parameters()).device
    if x.device != device:
        raise PoisonkitError(f"the generator is on {device}, the images are on {x.device}")


def save_generator(
    path: Path, generator: NoiseGenerator, *, name: str, channels: int, **options: int
) -> None:
    """Write a generator as one safetensors file.

    Parameters
    ----------
    name, channels, options : what it was built from, see
        :func:`poisonkit.models.generators.create_generator`.

    Raises
    ------
    PoisonkitError
        If they are not what it was built from: it could not be read back.
    """
    state = {key: value.contiguous() for key, value in generator.state_dict().items()}
    _rebuilt(name, channels, options, state, generator.epsilon)
    about = {
        "format": FORMAT,
        "generator": name,
        "channels": channels,
        "epsilon": generator.epsilon,
        "options": options,
    }
    save_file(state, path, metadata={"poisonkit": json.dumps(about)})


def load_generator(path: Path, *, device: torch.device | str = "cpu") -> NoiseGenerator:
    """Read back what :func:`save_generator` wrote, in eval mode; ``auto`` is CUDA if there."""
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
    if missing := {"generator", "channels", "options", "epsilon"} - about.keys():
        raise PoisonkitError(f"{path} does not say its {', '.join(sorted(missing))}")
    return _rebuilt(
        about["generator"], about["channels"], about["options"], state, about["epsilon"]
    ).to(choose_device(device))


def _rebuilt(
    name: str,
    channels: int,
    options: Mapping[str, int],
    state: Mapping[str, Tensor],
    epsilon: float,
) -> NoiseGenerator:
    """Build a generator, in eval mode, and give it weights that must be those of its kind."""
    generator = build_generator(name, channels, options, epsilon=epsilon, seed=0)
    try:
        generator.load_state_dict(state)
    except RuntimeError as error:
        about = ", ".join(f"{key}={value}" for key, value in options.items())
        raise PoisonkitError(
            f"the weights are not those of a generator {name!r} for {channels} channels"
            f" with {about or 'its usual options'}: give the options that it was created with"
        ) from error
    return generator.eval()
