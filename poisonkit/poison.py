"""What every attack returns, checked before it is used and portable as PNG files."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poisonkit.bounds import Bound, levels, round_within
from poisonkit.devices import choose_device
from poisonkit.errors import PoisonError, unknown
from poisonkit.files import whole_folder
from poisonkit.images import ImageSet

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Poison:
    """Poisoned training images and how they enter a training set.

    Attributes
    ----------
    images : uint8 [P, C, H, W], as they are trained on: rounding has happened.
    labels : int64 [P], the labels they are given.
    rows : int64 [P], the training rows they were made from.
    placement : ``replaced``, they take the place of those rows; ``added``, they
        are appended and the rows stay.
    bound : what the attack promises, relative to the images of ``rows``.
    clean_label : whether each label is promised to be that of its row.
    source : checksum of the training set that ``rows`` counts in.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    placement: Literal["added", "replaced"]
    bound: Bound
    clean_label: bool
    source: str

    def __post_init__(self) -> None:
        if self.placement not in ("added", "replaced"):
            raise unknown("placement", self.placement, ("added", "replaced"))

    def __len__(self) -> int:
        return len(self.labels)

    def verify(self, train: ImageSet, *, targets: Tensor | None = None) -> Tensor:
        """Check every promise against the training set that the poison was made for.

        Parameters
        ----------
        targets : uint8 [T, C, H, W], images that the attack is aimed at; none of
            them may be a training image.

        Returns
        -------
        int64 [P], what the bound limits, as measured on the rounded images.

        Raises
        ------
        PoisonError
            Naming the first promise that is broken, and by how much.
        """
        if train.checksum != self.source:
            raise PoisonError(
                f"this poison was made for a training set with checksum {self.source[:12]}, "
                f"{train.name} here has {train.checksum[:12]}: its rows mean other images"
            )
        if self.images.device != train.device:
            raise PoisonError(
                f"the poison is on {self.images.device}, {train.name} on {train.device}"
            )
        expected = (len(self.rows), *train.x.shape[1:])
        if self.images.dtype != torch.uint8 or self.images.shape != expected:
            raise PoisonError(
                f"poisoned images must be uint8 of shape {list(expected)}, "
                f"not {self.images.dtype} of shape {list(self.images.shape)}"
            )
        if self.labels.shape != self.rows.shape:
            raise PoisonError(f"{len(self.rows)} poisoned images have {len(self.labels)} labels")
        outside = self.rows[(self.rows < 0) | (self.rows >= len(train))]
        if len(outside):
            raise PoisonError(f"row {int(outside[0])} is not one of the {len(train)} images")
        if self.placement == "replaced" and len(self.rows.unique()) < len(self.rows):
            raise PoisonError("two poisoned images are to replace the same training image")
        measured = self.bound.measure(self.images, train.x[self.rows])
        if len(measured) and int(measured.max()) > self.bound.value:
            raise PoisonError(
                f"the {self.bound.kind} bound is {self.bound.value}, but poisoned image "
                f"{int(measured.argmax())} has {int(measured.max())} after rounding to uint8"
            )
        wrong = torch.nonzero(self.labels != train.y[self.rows]).flatten()
        if self.clean_label and len(wrong):
            raise PoisonError(
                f"a clean-label poison must keep every label, but image {int(wrong[0])} of class "
                f"{train.class_names[int(train.y[self.rows[wrong[0]]])]!r} is labelled "
                f"{train.class_names[int(self.labels[wrong[0]])]!r}"
            )
        if targets is not None:
            refuse_known_targets(train, targets)
        return measured

    def apply(self, train: ImageSet, *, targets: Tensor | None = None) -> tuple[ImageSet, Tensor]:
        """Return the poisoned training set and a mask [N] of its poisoned rows.

        The poison is verified first; ``train`` itself is not changed.
        """
        self.verify(train, targets=targets)
        if self.placement == "added":
            x, y = torch.cat([train.x, self.images]), torch.cat([train.y, self.labels])
            poisoned = torch.arange(len(y), device=train.device) >= len(train)
        else:
            x, y = train.x.clone(), train.y.clone()
            x[self.rows], y[self.rows] = self.images, self.labels
            poisoned = torch.zeros(len(y), dtype=torch.bool, device=train.device)
            poisoned[self.rows] = True
        return replace(train, x=x, y=y, name=f"{train.name} (poisoned)"), poisoned

    def export(self, folder: str | Path) -> Path:
        """Write the poison as PNG files and a manifest, and return the manifest's path.

        The folder must be empty or new. PNG is lossless, so :func:`load_poison`
        gives back the same bytes.
        """
        folder, entries = Path(folder), []
        with whole_folder(folder) as partial:
            for index, image in enumerate(self.images.cpu()):
                array = image.permute(1, 2, 0).numpy()
                name = f"{index:05d}.png"
                if array.shape[2] == 1:
                    array = array[:, :, 0]
                Image.fromarray(array).save(partial / name)
                entries.append(
                    {
                        "file": name,
                        "label": int(self.labels[index]),
                        "row": int(self.rows[index]),
                        "sha256": _digest(image),
                    }
                )
            manifest = {
                "format": FORMAT,
                "placement": self.placement,
                "bound": asdict(self.bound),
                "clean_label": self.clean_label,
                "source": self.source,
                "images": entries,
            }
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        return folder / MANIFEST


def clean_label_poison(
    images: Tensor, train: ImageSet, rows: Sequence[int] | Tensor, *, epsilon: float
) -> Poison:
    """Return changed images that take the place of training images and keep their labels.

    Parameters
    ----------
    images : [P, C, H, W], uint8; or floats in [0, 1], which are rounded within the bound.
    rows : of the training images that they were made from.
    epsilon : bound of the change of each value, on the [0, 1] scale.
    """
    chosen = torch.as_tensor(rows, device=train.device)
    limit = levels(epsilon)
    if images.is_floating_point():
        images = round_within(images, train.x[chosen], limit=limit)
    return Poison(
        images=images,
        labels=train.y[chosen],
        rows=chosen,
        placement="replaced",
        bound=Bound(kind="linf", value=limit),
        clean_label=True,
        source=train.checksum,
    )


def load_poison(folder: str | Path, *, device: torch.device | str = "cpu") -> Poison:
    """Read back what :meth:`Poison.export` wrote, checking every image's digest.

    On device ``auto`` it lies on CUDA where that is to be had.
    """
    path, device = Path(folder) / MANIFEST, choose_device(device)
    if not path.is_file():
        raise PoisonError(f"{path} does not exist; give a folder written by Poison.export")
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise PoisonError(
                f"{path} has format {manifest['format']}, this version reads {FORMAT}"
            )
        entries = manifest["images"]
        images = [_read_image(path.parent, entry) for entry in entries]
        if not images:
            raise PoisonError(f"{path} lists no images")
        return Poison(
            images=torch.stack(images).contiguous().to(device),
            labels=torch.tensor([entry["label"] for entry in entries], device=device),
            rows=torch.tensor([entry["row"] for entry in entries], device=device),
            placement=manifest["placement"],
            bound=Bound(**manifest["bound"]),
            clean_label=manifest["clean_label"],
            source=manifest["source"],
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise PoisonError(f"{path} is not a whole manifest ({error})") from error


def _read_image(folder: Path, entry: dict[str, Any]) -> Tensor:
    file = folder / Path(entry["file"]).name
    try:
        with Image.open(file) as opened:
            array = np.asarray(opened)
    # Pillow reports some damage to PNG files by the last two.
    except (OSError, SyntaxError, ValueError) as error:
        raise PoisonError(f"{file} cannot be read ({error})") from error
    image = torch.from_numpy(array.copy()).reshape(*array.shape[:2], -1).permute(2, 0, 1)
    if _digest(image) != entry["sha256"]:
        raise PoisonError(f"{file} is not the image that the manifest describes")
    return image


def _digest(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


def must_be_image_set(targets: object) -> None:
    """Refuse targets without their labels."""
    if not isinstance(targets, ImageSet):
        raise PoisonError(
            "targets are an ImageSet, images with their labels such as test.select([7]), "
            f"not {type(targets).__name__}"
        )


def whole_numbers(values: Sequence[int] | Tensor) -> list[int]:
    """Return rows or labels, given in whatever way or one alone, as a list of ints."""
    found = torch.as_tensor(values).reshape(-1)
    if len(found) and (found.is_floating_point() or found.dtype == torch.bool):
        raise PoisonError(f"rows and labels are whole numbers, not {found.dtype}")
    return list(found.tolist())


def common_label(train: ImageSet, rows: Sequence[int]) -> int:
    """Return the label of training images that are to be poisoned, which must all have it.

    Raises
    ------
    PoisonError
        If a row does not exist, or they are of several classes.
    """
    for row in rows:
        if not 0 <= row < len(train):
            raise PoisonError(f"row {row} is not one of the {len(train)} training images")
    labels = train.y[torch.as_tensor(rows, dtype=torch.int64, device=train.device)].unique()
    if len(labels) != 1:
        names = ", ".join(train.class_names[label] for label in labels.tolist())
        raise PoisonError(f"the poisons must be of one class, not of {names or 'none'}")
    return int(labels)


def refuse_known_targets(train: ImageSet, targets: Tensor) -> None:
    """Raise an error if one of the targets, uint8 [T, C, H, W], is a training image.

    Neither may they be of another size.
    """
    if targets.shape[1:] != train.x.shape[1:]:
        raise PoisonError(
            f"the targets are {list(targets.shape[1:])}, the training images "
            f"{list(train.x.shape[1:])}"
        )
    if targets.device != train.device:
        raise PoisonError(f"the targets are on {targets.device}, {train.name} on {train.device}")
    for index, target in enumerate(targets):
        same = (train.x == target).flatten(1).all(1)
        if bool(same.any()):
            raise PoisonError(
                f"target {index} is training image {int(same.nonzero()[0])}; a target must be "
                "an image that the victim never trains on"
            )
