"""What convolutions and products are computed in: as asked, whatever the caller had set."""

import pytest
import torch

from poisonkit.devices import repeatable_kernels

SWITCHES = {
    "nothing": (),
    "everything in TF32": ((torch.backends, "tf32"),),
    "cuDNN in full": ((torch.backends.cudnn, "ieee"),),
    "convolutions in full": ((torch.backends.cudnn.conv, "ieee"),),
    "products in TF32": ((torch.backends.cuda.matmul, "tf32"),),
}


def precisions() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@pytest.mark.parametrize("name", SWITCHES)
def test_kernels_compute_as_asked_and_the_callers_choice_comes_back(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [
        torch.backends,
        torch.backends.cudnn,
        torch.backends.cudnn.conv,
        torch.backends.cuda.matmul,
    ]
    untouched = [place.fp32_precision for place in places]
    try:
        for place, precision in SWITCHES[name]:
            place.fp32_precision = precision
        before = precisions()
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
        with repeatable_kernels():
            assert precisions() == ("ieee", "ieee")
            assert not torch.backends.cudnn.benchmark
            assert torch.backends.cudnn.deterministic
            with repeatable_kernels(tf32=True):
                assert precisions() == ("tf32", "tf32")
            assert precisions() == ("ieee", "ieee")
        assert precisions() == before
        assert torch.backends.cudnn.benchmark
    finally:
        for place, precision in zip(places, untouched, strict=True):
            place.fp32_precision = precision
