"""Named image data sets: where they are looked for, and what is checked when they are read."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from poisonkit.devices import choose_device
from poisonkit.errors import DataError, unknown
from poisonkit.images import ImageSet

NAMES = ("digits", "mnist", "cifar10", "imagenet2", "folder:PATH")
#: ImageNet identifiers of the two classes of the Deep Confuse paper: bulbul, jellyfish.
IMAGENET2_CLASSES = ("n01560419", "n01910747")

# torchvision verifies the MNIST archives when it downloads them, but not the
# unpacked files that it reads later; these are the digests of the latter.
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def cache_root() -> Path:
    """Return the user's cache folder for poisonkit (``POISONKIT_CACHE`` overrides it)."""
    if chosen := os.environ.get("POISONKIT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "poisonkit"


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder with the data: the argument, else ``POISONKIT_DATA``, else a cache."""
    return Path(root or os.environ.get("POISONKIT_DATA") or cache_root() / "data").expanduser()


def load(
    name: str | Path,
    *,
    split: str = "train",
    root: str | Path | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
    image_size: int | None = None,
    classes: Sequence[str] | None = None,
    grey: bool = False,
) -> ImageSet:
    """Load one split of a data set.

    Parameters
    ----------
    name : ``digits`` (bundled with scikit-learn, 16 x 16 by default), ``mnist``,
        ``cifar10``, ``imagenet2`` (two class folders of an ImageNet-style tree)
        or ``folder:PATH`` (a user's own images, one folder a class; a ``Path`` is that, too).
    split : ``train`` or ``test``.
    root : folder that holds the data, see :func:`data_root`.
    download : fetch what is missing; only MNIST and CIFAR-10 can be fetched.
    device : where the tensors shall live, ``auto`` being CUDA where it is to be had.
    image_size : side in pixels to which images are resized; by default images
        keep their size (which must then be the same for all).
    classes : the two folders of ``imagenet2``; None is the paper's pair.
    grey : whether a user's own images get one channel instead of three.

    Raises
    ------
    DataError
        If the data are missing, incomplete or corrupt, or an option does not belong to them.
        Other data are never put in their place.
    """
    name = f"folder:{name}" if isinstance(name, Path) else name
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    if download and name not in ("mnist", "cifar10"):
        raise DataError(f"{name} cannot be fetched, only mnist and cifar10 can")
    if classes is not None and name != "imagenet2":
        raise DataError(f"classes are for imagenet2 alone, not for {name}; use ImageSet.select")
    if grey and not name.startswith("folder:"):
        raise DataError(f"grey is for a folder of your own images, not for {name}")
    folder, device = data_root(root), choose_device(device)
    if name == "digits":
        images = _digits(split)
        image_size = image_size or 16
    elif name in ("mnist", "cifar10"):
        images = _torchvision(name, split, folder, download)
    elif name == "imagenet2":
        images = _imagenet2(split, folder, tuple(classes or IMAGENET2_CLASSES), image_size)
    elif name.startswith("folder:"):
        path = Path(name.removeprefix("folder:")).expanduser()
        images = _own_folder(path, split, image_size, mode="L" if grey else "RGB")
    else:
        raise unknown("data set", name, NAMES)
    if image_size and images.image_size != (image_size, image_size):
        images = replace(images, x=_resize(images.x, image_size))
    return images.to(device)


def _resize(x: Tensor, side: int) -> Tensor:
    resized = [
        F.interpolate(chunk.float(), size=(side, side), mode="bilinear", antialias=True)
        for chunk in x.split(1000)
    ]
    return torch.cat(resized).round_().clamp_(0, 255).to(torch.uint8)


def _digits(split: str) -> ImageSet:
    """The 1,797 8 x 8 digits of scikit-learn: the first four fifths of each class train.

    The bundled order goes from writer to writer, so the test digits come mostly
    from other hands than the training digits.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
    images = ImageSet(
        x=x,
        y=torch.from_numpy(digits.target).long(),
        class_names=tuple(str(k) for k in range(10)),
        name="digits",
    )
    train = torch.zeros(len(images), dtype=torch.bool)
    for label in range(10):
        rows = images.indices_of(label)
        train[rows[: len(rows) * 4 // 5]] = True
    return images.select(train if split == "train" else ~train)


def _torchvision(name: str, split: str, folder: Path, download: bool) -> ImageSet:
    from torchvision import datasets

    loader = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    advice = (
        f"fetch it with: poisonkit data --download {name} --root {folder}, or name the "
        f"folder that holds it in POISONKIT_DATA"
    )
    raw = folder / "MNIST" / "raw"
    if name == "mnist" and download:
        # torchvision takes any file of the right name for the right one.
        for file in _MNIST_MD5:
            if not _is_official_mnist(raw / file):
                (raw / file).unlink(missing_ok=True)
    elif name == "mnist":
        _verify_mnist(raw, advice)
    try:
        loaded = loader(folder, train=split == "train", download=download)
    except (RuntimeError, OSError, EOFError, AssertionError, ValueError) as error:
        raise DataError(f"{name}: not found whole below {folder} ({error}); {advice}") from error
    x = torch.as_tensor(np.asarray(loaded.data))
    x = x.permute(0, 3, 1, 2).contiguous() if name == "cifar10" else x[:, None]
    names = loaded.classes if name == "cifar10" else [str(k) for k in range(10)]
    return ImageSet(x=x, y=torch.as_tensor(loaded.targets), class_names=tuple(names), name=name)


def _verify_mnist(raw: Path, advice: str) -> None:
    for path in (raw / file for file in _MNIST_MD5):
        if not path.is_file():
            raise DataError(f"mnist: {path} does not exist; {advice}")
        if not _is_official_mnist(path):
            raise DataError(f"mnist: {path} is truncated or corrupt (MD5 differs); {advice}")


def _is_official_mnist(path: Path) -> bool:
    if not path.is_file():
        return False
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return found == _MNIST_MD5[path.name]


def _imagenet2(
    split: str, folder: Path, classes: tuple[str, ...], image_size: int | None
) -> ImageSet:
    """Two class folders of ``train/`` and ``val/`` below an ImageNet-style tree."""
    if len(set(classes)) != 2:
        raise DataError(f"imagenet2 needs two different classes, not {classes}")
    part = "train" if split == "train" else "val"
    for tree in (folder, folder / "imagenet", folder / "tiny-imagenet"):
        if all((tree / part / wnid).is_dir() for wnid in classes):
            return _read_tree(tree / part, classes, "imagenet2", image_size)
    trees = [tree for tree in (folder / part, *folder.glob(f"*/{part}")) if tree.is_dir()]
    found = sorted({path.name for tree in trees for path in tree.iterdir() if path.is_dir()})
    raise DataError(
        f"imagenet2: no folders {part}/{classes[0]} and {part}/{classes[1]} in {folder}, its "
        f"imagenet/ or its tiny-imagenet/ (classes found: {', '.join(found) or 'none'}); place an "
        "ImageNet tree there (its licence forbids fetching it for you), name its folder in "
        "POISONKIT_DATA, or choose other classes"
    )


def _own_folder(folder: Path, split: str, image_size: int | None, *, mode: str) -> ImageSet:
    """``PATH/train`` and ``PATH/test`` (or ``val``); without them a fifth of PATH is the test."""
    if not folder.is_dir():
        raise DataError(f"folder:{folder} does not exist; give a folder with one folder a class")
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if test and not (folder / "train").is_dir():
        raise DataError(f"folder:{folder} has {test.name}/ but no train/ beside it")
    if (folder / "train").is_dir():
        if test is None:
            raise DataError(f"folder:{folder} has train/ but neither test/ nor val/ beside it")
        classes = _class_folders(folder / "train")
        if odd := set(_class_folders(test)) - set(classes):
            raise DataError(
                f"folder:{folder}: {test.name}/ has {', '.join(sorted(odd))}, train/ has not"
            )
        tree = folder / "train" if split == "train" else test
        return _read_tree(tree, classes, f"folder:{folder}", image_size, mode=mode)
    classes = _class_folders(folder)
    images = _read_tree(folder, classes, f"folder:{folder}", image_size, mode=mode)
    for label, name in enumerate(classes):
        if (count := len(images.indices_of(label))) < 3:
            raise DataError(
                f"folder:{folder}: class {name!r} has {count} image{'s' * (count != 1)}, of which "
                "a fifth cannot be set apart for the test; add images, or give train/ and test/"
            )
    return images.split(0.2, seed=0)[0 if split == "train" else 1]


def _class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder but hidden ones, such as Jupyter's."""
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return tuple(sorted(name for name in names if not name.startswith((".", "__"))))


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder and below it, by the endings that torchvision reads."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)


def read_image(path: Path, *, mode: str = "RGB") -> Image.Image:
    """Read an image file in one of Pillow's modes, ``RGB`` or ``L``.

    What has no such form without a choice, more than 8 bits or transparency, is an error.
    """
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):
                raise DataError(f"{path} has more than 8 bits a channel; convert it to 8 first")
            if file.has_transparency_data and np.asarray(file.convert("RGBA"))[..., 3].min() < 255:
                raise DataError(f"{path} is transparent in parts; give it a background first")
            return file.convert(mode)
    # Pillow reports some damage to PNG files by the last two.
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image ({error})") from error


def _read_tree(
    tree: Path, classes: tuple[str, ...], name: str, image_size: int | None, *, mode: str = "RGB"
) -> ImageSet:
    if not classes:
        raise DataError(f"{name}: {tree} holds no class folders")
    x, y = [], []
    for label, class_name in enumerate(classes):
        paths = image_files(tree / class_name)
        if not paths:
            raise DataError(f"{name}: no images in {tree / class_name}")
        for path in paths:
            image = read_image(path, mode=mode)
            if image_size:
                image = ImageOps.fit(image, (image_size, image_size))
            x.append(np.asarray(image))
            y.append(label)
            if x[-1].shape != x[0].shape:
                raise DataError(
                    f"{name}: {path} is {x[-1].shape[1]} x {x[-1].shape[0]} pixels, others are "
                    f"{x[0].shape[1]} x {x[0].shape[0]}; give image_size to resize them all"
                )
    shape = (len(x), *x[0].shape[:2])
    return ImageSet(
        x=torch.from_numpy(np.stack(x)).reshape(*shape, -1).permute(0, 3, 1, 2).contiguous(),
        y=torch.tensor(y),
        class_names=classes,
        name=name,
    )
