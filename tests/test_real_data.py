"""The papers' own data sets: complete, in official order, and never damaged unnoticed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from poisonkit.data import load
from poisonkit.errors import DataError

pytestmark = pytest.mark.realdata
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"


def damaged_copy(source: Path, target: Path, file: str, damage: str) -> None:
    """Link a folder's files into another one, but damage one of them."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != file:
            (target / path.name).symlink_to(path)
        elif damage != "missing":
            data = bytearray(path.read_bytes())
            if damage == "flipped":
                data[len(data) // 2] ^= 1
            (target / file).write_bytes(data[:-1] if damage == "truncated" else data)


@pytest.mark.parametrize(("split", "count"), [("train", 50_000), ("test", 10_000)])
def test_cifar10_holds_the_official_images_in_torchvisions_order(real_cifar10, split, count):
    from torchvision.datasets import CIFAR10

    images = load("cifar10", split=split, root=real_cifar10)
    assert images.x.shape == (count, 3, 32, 32)
    assert images.class_names == tuple(CIFAR10_CLASSES.split())
    assert images.y.bincount().tolist() == [count // 10] * 10
    official = CIFAR10(real_cifar10, train=split == "train")
    assert images.y.tolist() == official.targets
    assert np.array_equal(images.x.permute(0, 2, 3, 1).numpy(), official.data)


def test_mnist_holds_the_official_images(real_mnist):
    images = load("mnist", root=real_mnist)
    assert images.x.shape == (60_000, 1, 28, 28)
    # The counts that LeCun's data are known by.
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert images.y.bincount().tolist() == counts
    raw = (real_mnist / "MNIST/raw/train-images-idx3-ubyte").read_bytes()[16:]
    assert images.x.numpy().tobytes() == raw
    assert len(load("mnist", split="test", root=real_mnist)) == 10_000


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_damaged_mnist_file_is_an_error_that_names_it(real_mnist, tmp_path, file, damage):
    damaged_copy(real_mnist / "MNIST/raw", tmp_path / "MNIST/raw", file, damage)
    with pytest.raises(DataError) as caught:
        load("mnist", root=tmp_path)
    assert str(tmp_path / "MNIST/raw" / file) in str(caught.value)
    assert "poisonkit data --download mnist" in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_mnist_is_not_used_when_a_download_was_asked_for(
    real_mnist, tmp_path, damage, monkeypatch
):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody answers there
    file = "train-images-idx3-ubyte"
    damaged_copy(real_mnist / "MNIST/raw", tmp_path / "MNIST/raw", file, damage)
    with pytest.raises(DataError, match="mnist"):
        load("mnist", root=tmp_path, download=True)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("data_batch_3", "truncated"),
        ("data_batch_3", "flipped"),
        ("test_batch", "flipped"),
        ("batches.meta", "flipped"),
        ("data_batch_5", "missing"),
    ],
)
def test_a_damaged_cifar10_file_is_an_error(real_cifar10, tmp_path, file, damage):
    folder = "cifar-10-batches-py"
    damaged_copy(real_cifar10 / folder, tmp_path / folder, file, damage)
    with pytest.raises(DataError) as caught:
        load("cifar10", root=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "poisonkit data --download cifar10" in str(caught.value)


def test_two_classes_of_an_imagenet_tree_are_read_in_the_order_asked_for(real_data):
    tree = next(
        (t for t in (real_data / "imagenet", real_data / "tiny-imagenet") if t.is_dir()), None
    )
    if tree is None:
        pytest.skip(f"POISONKIT_DATA={real_data} has no ImageNet tree")
    first, second = sorted(path.name for path in (tree / "val").iterdir() if path.is_dir())[:2]
    images = load("imagenet2", split="test", root=real_data, classes=(second, first), image_size=48)
    assert images.class_names == (second, first)
    files = [sorted((tree / "val" / name).rglob("*.JPEG")) for name in (second, first)]
    assert images.y.bincount().tolist() == [len(own) for own in files]
    with Image.open(files[0][0]) as opened:
        brightness = np.asarray(opened.convert("RGB"), float).mean()
    assert images.x.shape[1:] == (3, 48, 48)
    assert abs(images.x[0].double().mean().item() - brightness) < 5
