"""Smooth changes of an image's colours: each colour moves a little, the same wherever it is.

MetaPoison's later version allows a poison, beside a bounded change of each value, a
function from colours to colours (Laidlaw and Feizi, 2019). It is given at the points of a
grid over the colours and interpolated between them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poisonkit.errors import PoisonkitError

#: Rows make Y, U and V from red, green and blue (ITU-R BT.601).
_TO_YUV = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]
)
#: The largest value of each of Y, U and V, and the smallest.
_HIGHEST = torch.tensor([1.0, 0.436, 0.615])
_LOWEST = torch.tensor([0.0, -0.436, -0.615])


def to_yuv(x: Tensor) -> Tensor:
    """Turn images [N, 3, H, W] from red, green and blue in [0, 1] into Y, U and V."""
    return torch.einsum("ij,njhw->nihw", _TO_YUV.to(x), x)


def to_rgb(x: Tensor) -> Tensor:
    """Turn images [N, 3, H, W] back; colours that do not exist are outside [0, 1]."""
    return torch.einsum("ij,njhw->nihw", torch.linalg.inv(_TO_YUV.double()).to(x), x)


def reach(bound: float) -> float:
    """Return how far a recolouring of that bound moves a value of red, green or blue at most."""
    return bound * float(torch.linalg.inv(_TO_YUV.double()).abs().sum(1).max())


class Recolouring(nn.Module):
    """One function from colours to colours for each of n images.

    Parameters
    ----------
    count : n.
    bound : no colour moves by more than this in any of Y, U and V.
    points : of the grid along each of the three.
    """

    def __init__(self, count: int, *, bound: float, points: int = 10) -> None:
        super().__init__()
        if not 0 < bound <= 1 or points < 2:
            raise PoisonkitError("a recolouring needs a bound in (0, 1] and at least 2 grid points")
        self.bound = bound
        self.offsets = nn.Parameter(torch.zeros(count, 3, points, points, points))

    def forward(self, x: Tensor) -> Tensor:
        """Recolour images [n, 3, H, W] in [0, 1]."""
        if x.shape[1] != 3:
            raise PoisonkitError(f"recolouring needs 3 channels, not {x.shape[1]}")
        yuv = to_yuv(x)
        low, high = _LOWEST.to(x).view(-1, 1, 1), _HIGHEST.to(x).view(-1, 1, 1)
        place = 2 * (yuv - low) / (high - low) - 1
        # grid_sample reads the grid's last axis first; the grid's axes are Y, U, V.
        grid = place.flip(1).permute(0, 2, 3, 1)[:, None]
        moved = F.grid_sample(self.offsets, grid, padding_mode="border", align_corners=True)
        return to_rgb(yuv + moved[:, :, 0]).clamp(0, 1)

    def roughness(self) -> Tensor:
        """Return the mean squared slope between neighbours in the grid, for each image [n].

        A slope is the difference of two offsets by the length of a grid's cell, 1 / ``points``
        (the released code's convention).
        """
        total = torch.zeros(len(self.offsets), device=self.offsets.device)
        for axis in (2, 3, 4):
            slope = self.offsets.shape[axis] * self.offsets.diff(dim=axis)
            total = total + slope.square().flatten(1).mean(1)
        return total / 3

    @torch.no_grad()
    def project(self) -> None:
        """Go back to the bound."""
        self.offsets.clamp_(-self.bound, self.bound)
