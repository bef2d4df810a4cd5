"""A user's own images go through a whole experiment, and never under another's name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.spectral_signatures import REMOVAL
from poisonkit.store import Store


def write_images(folder: Path, *, size: tuple[int, int] = (20, 20), seed: int = 0) -> Path:
    """Thirty noisy images of each of two classes, one darker than the other."""
    random = np.random.default_rng(seed)
    for name, low in (("cats", 0), ("dogs", 120)):
        (folder / name).mkdir(parents=True)
        for number in range(30):
            pixels = random.integers(low, low + 130, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def configure(folder: Path, **options: object) -> Any:
    return REMOVAL.configure(
        profile="quick",
        dataset=f"folder:{folder}",
        pairs=(("cats", "dogs"),),
        shares=(0.2,),
        colour=(255, 255, 0),
        trials=1,
        **{"recipe.epochs": 1, **options},
    )


def test_own_images_are_resized_and_poisoned(tmp_path: Path, store: Store) -> None:
    config = configure(write_images(tmp_path / "own"), image_size=16)
    record = run(REMOVAL, config, store=store, device="cpu")
    assert record.metrics["trials"][0]["poisons"] == round(0.2 * 24)


def test_other_images_under_the_same_path_are_another_record(tmp_path: Path, store: Store) -> None:
    config = configure(tmp_path / "own")
    write_images(tmp_path / "own", seed=0)
    first = run(REMOVAL, config, store=store, device="cpu")
    (tmp_path / "own").rename(tmp_path / "old")
    with pytest.raises(PoisonkitError, match="does not exist"):
        run(REMOVAL, config, store=store, device="cpu")
    write_images(tmp_path / "own", seed=1)
    second = run(REMOVAL, config, store=store, device="cpu")
    assert first.path != second.path
    assert first.provenance["data_checksum"] != second.provenance["data_checksum"]


@pytest.mark.parametrize("model", ["small_cnn", "resnet8", "preact_resnet8"])
@pytest.mark.parametrize("size", [(21, 30), (30, 30), (17, 17)])
def test_networks_take_images_of_any_shape(
    model: str, size: tuple[int, int], tmp_path: Path, store: Store
) -> None:
    tap = "block3" if model == "small_cnn" else "group3.0"
    config = configure(write_images(tmp_path / "own", size=size), model=model, tap=tap)
    assert run(REMOVAL, config, store=store, device="cpu").metrics["trials"]


def write_two_sizes(folder: Path) -> Path:
    write_images(folder / "train", size=(20, 20))
    write_images(folder / "test", size=(24, 24))
    return folder


#: One of each paper, with a name that is a class of :func:`write_images`.
OTHERS: dict[str, dict[str, object]] = {
    "deep_confuse/mnist": {},
    "metapoison/victims": {"poison_class": "cats", "target_class": "dogs", "poisons": 10},
    "convex_polytope/transfer": {"poison_class": "cats", "target_class": "dogs"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_chapter_refuses_test_images_of_another_size(
    name: str, tmp_path: Path, store: Store
) -> None:
    folder = write_two_sizes(tmp_path / "own")
    options = {"dataset": f"folder:{folder}", "image_size": "none", **OTHERS[name]}
    config = EXPERIMENTS[name].configure(profile="quick", **options)
    with pytest.raises(PoisonkitError, match=r"\(20, 20\), test images \(24, 24\)"):
        run(EXPERIMENTS[name], config, store=store, device="cpu")


def test_training_and_test_images_of_other_sizes_are_refused(tmp_path: Path, store: Store) -> None:
    write_two_sizes(tmp_path / "own")
    with pytest.raises(PoisonkitError, match="set image_size"):
        run(REMOVAL, configure(tmp_path / "own"), store=store, device="cpu")
    resized = configure(tmp_path / "own", image_size=16)
    assert run(REMOVAL, resized, store=store, device="cpu").metrics["trials"]
