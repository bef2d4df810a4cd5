"""What several tests share: small image sets, a store of their own, the real data if there."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from poisonkit.experiments import networks
from poisonkit.images import ImageSet
from poisonkit.store import Store

pytest.register_assert_rewrite("metapoison_laboratory", "convex_polytope_laboratory")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device here"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Sums of floats depend on the number of threads; the nets here are too small to need two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(frozen=tmp_path / "results", cache=tmp_path / "cache")


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a cache of each chapter's experiments, which all of their tests share."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture
def make_images() -> Callable[..., ImageSet]:
    """Random images: ``make_images(count, classes=..., channels=..., size=(h, w), seed=...)``."""

    def make(
        count: int = 60,
        *,
        classes: int = 3,
        channels: int = 3,
        size: tuple[int, int] = (8, 8),
        seed: int = 0,
    ) -> ImageSet:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(0, 256, (count, channels, *size), generator=generator, dtype=torch.uint8)
        y = torch.randint(0, classes, (count,), generator=generator)
        y[:classes] = torch.arange(classes)
        names = tuple(f"class {label}" for label in range(classes))
        return ImageSet(x=x, y=y, class_names=names, name="random images")

    return make


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every training of a network a failure of the test."""

    def fit(*_: object, **__: object) -> None:
        raise AssertionError("a network was trained")

    monkeypatch.setattr(networks, "fit", fit)


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ImageSet]]:
    """Collect the data that experiments load, and check afterwards that nothing changed them."""
    load, loaded, checksums = networks.load, list[ImageSet](), list[str]()

    def watched(*arguments: Any, **options: Any) -> ImageSet:
        images = load(*arguments, **options)
        loaded.append(images)
        checksums.append(images.checksum)
        return images

    monkeypatch.setattr(networks, "load", watched)
    yield loaded
    # A copy computes its checksum anew.
    assert [replace(images).checksum for images in loaded] == checksums


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the papers' own data; only POISONKIT_DATA says where it is."""
    if not os.environ.get("POISONKIT_DATA"):
        pytest.skip("POISONKIT_DATA names no folder with the papers' data")
    return Path(os.environ["POISONKIT_DATA"])


@pytest.fixture(scope="session")
def real_cifar10(real_data: Path) -> Path:
    return _present(real_data, "cifar-10-batches-py")


@pytest.fixture(scope="session")
def real_mnist(real_data: Path) -> Path:
    return _present(real_data, "MNIST/raw")


def _present(root: Path, folder: str) -> Path:
    if not (root / folder).is_dir():
        pytest.skip(f"POISONKIT_DATA={root} has no {folder}")
    return root
