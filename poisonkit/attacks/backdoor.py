"""The backdoor attack of the Spectral Signatures paper (section 4.2).

Images of a source class are stamped with a small trigger and labelled as the
target class. A network trained on them learns to answer "target" whenever it
sees the trigger.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poisonkit.bounds import Bound
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.images import ImageSet, refuse_floats
from poisonkit.poison import Poison

#: Row and column offsets of each shape's pixels from its position. A ``pixel`` is
#: one pixel, an ``X`` has its centre and the four diagonal neighbours, an ``L``
#: goes one pixel down and one to the right.
PATTERNS: dict[str, tuple[tuple[int, int], ...]] = {
    "pixel": ((0, 0),),
    "X": ((0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)),
    "L": ((0, 0), (1, 0), (0, 1)),
}


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """A shape of one colour at one place.

    Attributes
    ----------
    pattern : a key of :data:`PATTERNS`.
    position : row and column, counted from 0 at the top left.
    colour : one value 0..255 for each channel.
    border : what happens to pixels outside the image: ``error``; ``clip``, they
        are left out; ``wrap``, they reappear on the other side, as negative
        indices do in the released code.
    """

    pattern: str = "pixel"
    position: tuple[int, int] = (11, 16)
    colour: tuple[int, ...] = (101, 0, 25)
    border: Literal["error", "clip", "wrap"] = "error"

    def pixels(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the rows and columns that the trigger overwrites in an image of that size."""
        if self.pattern not in PATTERNS:
            raise unknown("trigger pattern", self.pattern, PATTERNS)
        if self.border not in ("error", "clip", "wrap"):
            raise unknown("border", self.border, ("error", "clip", "wrap"))
        height, width = image_size
        if not (0 <= self.position[0] < height and 0 <= self.position[1] < width):
            raise PoisonkitError(
                f"trigger position {self.position} lies outside images of {height} x {width} pixels"
            )
        found = []
        for down, right in PATTERNS[self.pattern]:
            row, column = self.position[0] + down, self.position[1] + right
            if 0 <= row < height and 0 <= column < width:
                found.append((row, column))
            elif self.border == "wrap":
                found.append((row % height, column % width))
            elif self.border == "error":
                raise PoisonkitError(
                    f"pattern {self.pattern!r} at {self.position} needs pixel ({row}, {column}), "
                    f"outside images of {height} x {width}; move it, or set border to clip or wrap"
                )
        return found

    def stamp(self, x: Tensor) -> Tensor:
        """Return a copy of uint8 images [N, C, H, W] with the trigger on each of them."""
        refuse_floats(x)
        if len(self.colour) != x.shape[1]:
            raise PoisonkitError(
                f"trigger colour {self.colour} has {len(self.colour)} values, "
                f"the images have {x.shape[1]} channels"
            )
        if not all(0 <= value <= 255 for value in self.colour):
            raise PoisonkitError(f"trigger colour {self.colour} is not within 0..255")
        stamped = x.clone()
        colour = torch.tensor(self.colour, dtype=torch.uint8, device=x.device)
        for row, column in self.pixels((x.shape[2], x.shape[3])):
            stamped[:, :, row, column] = colour
        return stamped


def random_trigger(
    *, image_size: tuple[int, int], channels: int, seed: int, pattern: str = "random"
) -> Trigger:
    """Draw a trigger's shape, position and colour, as section 4.2 does.

    The paper publishes neither positions nor colours, so they are drawn from the
    seed: uniformly, among the positions at which the whole shape fits.
    """
    generator = torch.Generator().manual_seed(seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    names = list(PATTERNS)
    drawn = names[below(len(names))]
    pattern = drawn if pattern == "random" else pattern
    if pattern not in PATTERNS:
        raise unknown("trigger pattern", pattern, [*PATTERNS, "random"])
    margin = 1 if pattern == "X" else 0
    reach = 0 if pattern == "pixel" else 1
    row = margin + below(image_size[0] - margin - reach)
    column = margin + below(image_size[1] - margin - reach)
    colour = tuple(below(256) for _ in range(channels))
    return Trigger(pattern=pattern, position=(row, column), colour=colour)


def craft(
    train: ImageSet,
    *,
    trigger: Trigger,
    source: str | int,
    target: str | int,
    share: float = 0.10,
    placement: Literal["added", "replaced"] = "added",
    seed: int = 0,
) -> Poison:
    """Make the poisoned images of a backdoor attack.

    Parameters
    ----------
    train : the clean training set.
    source, target : class whose images are stamped, and class they are labelled as.
    share : number of poisoned images as a share of the target class's clean
        images (the paper's 5 % and 10 % are 250 and 500 of 5,000).
    placement : ``added`` as in the paper; ``replaced`` as in the released code,
        which takes the stamped originals out of the source class.
    seed : of the choice of source images.

    Raises
    ------
    PoisonkitError
        If the classes are the same, the share is outside (0, 1/2), or the source
        class has too few images.
    """
    source_label, target_label = train.label_of(source), train.label_of(target)
    if source_label == target_label:
        raise PoisonkitError(f"source and target are both {train.class_names[source_label]!r}")
    if not 0 < share < 0.5:
        raise PoisonkitError(f"the poison share must lie in (0, 1/2), not {share}")
    count = round(share * len(train.indices_of(target_label)))
    candidates = train.indices_of(source_label)
    if not 1 <= count <= len(candidates):
        raise PoisonkitError(
            f"a share of {share} of class {train.class_names[target_label]!r} is {count} images; "
            f"class {train.class_names[source_label]!r} can give 1 to {len(candidates)}"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(candidates), generator=generator)[:count].sort().values
    rows = candidates[chosen.to(train.device)]
    return Poison(
        images=trigger.stamp(train.x[rows]),
        labels=torch.full((count,), target_label, device=train.device),
        rows=rows,
        placement=placement,
        bound=Bound(kind="pixels", value=len(PATTERNS[trigger.pattern])),
        clean_label=False,
        source=train.checksum,
    )
