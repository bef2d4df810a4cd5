"""Labelled images, held as whole uint8 tensors on one device.

Small images fit a device entirely, so there is no loader and no worker process:
a data set is one tensor of images and one of labels, and batches are slices.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from poisonkit.errors import DataError, unknown


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Labelled images of one size.

    Attributes
    ----------
    x : uint8 tensor [N, C, H, W], values 0..255.
    y : int64 tensor [N], indices into ``class_names``.
    class_names : the classes, in the order of their labels.
    name : where the images come from, for messages and provenance.
    """

    x: Tensor
    y: Tensor
    class_names: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        for what, values in (("images", self.x), ("labels", self.y)):
            if not isinstance(values, Tensor):
                raise DataError(
                    f"{self.name}: {what} must be a torch tensor, not {type(values).__name__}"
                )
        if self.x.dtype != torch.uint8 or self.x.ndim != 4:
            raise DataError(
                f"{self.name}: images must be uint8 of shape [N, C, H, W], "
                f"not {self.x.dtype} of shape {list(self.x.shape)}"
            )
        if self.x.shape[3] in (1, 3) and self.x.shape[1] not in (1, 3):
            raise DataError(
                f"{self.name}: images of shape {list(self.x.shape)} seem to have their channels "
                "last; give x.permute(0, 3, 1, 2)"
            )
        if self.y.dtype != torch.int64 or self.y.shape != (len(self.x),):
            raise DataError(
                f"{self.name}: labels must be int64 of shape [{len(self.x)}], "
                f"not {self.y.dtype} of shape {list(self.y.shape)}"
            )
        if len(self.y) and not 0 <= int(self.y.min()) <= int(self.y.max()) < self.classes:
            raise DataError(
                f"{self.name}: labels run from {int(self.y.min())} to {int(self.y.max())}, "
                f"but there are {self.classes} classes"
            )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.x.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.x.shape[2], self.x.shape[3]

    @property
    def device(self) -> torch.device:
        return self.x.device

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of shapes, labels and pixels; the same wherever the data set lies."""
        digest = hashlib.sha256(repr((tuple(self.x.shape), self.class_names)).encode())
        for tensor in (self.y, self.x):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def label_of(self, class_name: str | int) -> int:
        """Return the label of a class given by name (or, unchanged, by label)."""
        if isinstance(class_name, int) and 0 <= class_name < self.classes:
            return class_name
        if class_name not in self.class_names:
            raise unknown(f"class of {self.name}", class_name, self.class_names)
        return self.class_names.index(str(class_name))

    def indices_of(self, label: int) -> Tensor:
        """Return the rows that carry a label, in the data set's order."""
        return torch.nonzero(self.y == label).flatten()

    def select(self, rows: Tensor | Sequence[int] | int) -> "ImageSet":
        """Return the given rows (indices, one index or a mask) as a data set of their own."""
        rows = torch.as_tensor(rows, device=self.device)
        rows = rows.reshape(1) if rows.ndim == 0 else rows
        return replace(self, x=self.x[rows], y=self.y[rows])

    def merge(self, class_names: Sequence[str], *, into: str) -> "ImageSet":
        """Make several classes one, which takes the place of the first of them.

        The other classes keep their order; the images stay as they are.
        """
        if len(set(class_names)) < 2:
            raise DataError(f"merging takes at least two classes, not {list(class_names)}")
        joined = sorted({self.label_of(name) for name in class_names})
        kept = [label for label in range(self.classes) if label not in joined[1:]]
        names = tuple(into if label == joined[0] else self.class_names[label] for label in kept)
        if len(set(names)) < len(names):
            raise DataError(f"{self.name}: there is a class {into!r} already")
        new = torch.tensor(
            [kept.index(joined[0] if k in joined else k) for k in range(self.classes)],
            device=self.device,
        )
        return replace(self, y=new[self.y], class_names=names)

    def first_per_class(self, count: int, *, skip: int = 0) -> "ImageSet":
        """Keep, of each class, ``count`` images in official order after the first ``skip``.

        The images stay in the data set's order. The papers describe their
        subsets this way ("the first 4,800 images of each class").
        """
        if count < 1 or skip < 0:
            raise DataError(f"cannot take {count} images of each class after the first {skip}")
        rows = [self.indices_of(label)[skip : skip + count] for label in range(self.classes)]
        for label, found in enumerate(rows):
            if len(found) < count:
                raise DataError(
                    f"{self.name}: class {self.class_names[label]!r} has "
                    f"{len(self.indices_of(label))} images, not the {skip} + {count} asked for"
                )
        return self.select(torch.cat(rows).sort().values)

    def split(self, share: float, *, seed: int) -> tuple["ImageSet", "ImageSet"]:
        """Split every class at random into ``1 - share`` and ``share`` of its images."""
        if not 0 < share < 1:
            raise DataError(f"a split needs a share between 0 and 1, not {share}")
        generator = torch.Generator().manual_seed(seed)
        held_out = torch.zeros(len(self), dtype=torch.bool, device=self.device)
        for label in range(self.classes):
            rows = self.indices_of(label)
            order = torch.randperm(len(rows), generator=generator).to(self.device)
            held_out[rows[order[: round(share * len(rows))]]] = True
        return self.select(~held_out), self.select(held_out)

    def to(self, device: torch.device | str) -> "ImageSet":
        return replace(self, x=self.x.to(device), y=self.y.to(device))


def refuse_floats(x: Tensor) -> None:
    """Raise an error if images are not uint8, whose values would be scaled once more."""
    if x.dtype != torch.uint8:
        raise DataError(f"images must be uint8, with values from 0 to 255, not {x.dtype}")


def batches(x: Tensor, *, batch_size: int = 1000, even: bool = False) -> Iterator[Tensor]:
    """Yield uint8 images as float32 batches in [0, 1].

    ``even`` ones have equally many images, but for one, and at most ``batch_size``.
    """
    refuse_floats(x)
    chunks = x.tensor_split(math.ceil(len(x) / batch_size)) if even else x.split(batch_size)
    for chunk in chunks:
        yield chunk.float().div_(255)
