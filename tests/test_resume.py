"""Runs that are killed, repeated or spread over processes end with one and the same record."""

import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from poisonkit.data import load
from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.experiments.networks import Context, Cost, trained_network
from poisonkit.models import create, features
from poisonkit.store import Store, read_record
from poisonkit.training import Recipe, fit

pytestmark = pytest.mark.slow
REMOVAL = EXPERIMENTS["spectral_signatures/removal"]
TINY = {"recipe.epochs": 3, "images_per_class": 120}
SCRIPT = f"""
import sys, torch
from pathlib import Path
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.store import Store
torch.set_num_threads(1)
experiment = EXPERIMENTS["spectral_signatures/removal"]
config = experiment.configure(profile="quick", trials=2, **{TINY})
print(run(experiment, config, store=Store(frozen=None, cache=Path(sys.argv[1])), device="cpu").path)
"""


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def networks(cache: Path) -> list[Path]:
    return list(cache.glob("networks/*.json"))


def kill_when(cache: Path, condition: Callable[[], bool]) -> None:
    """Start the run in a process of its own and kill it as soon as the condition holds."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(cache)])
    try:
        while not condition():
            assert process.poll() is None, "the run ended before it was killed"
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (cache / "records").exists(), "killed too late to say anything"


def test_a_run_killed_twice_ends_with_the_record_of_an_unbroken_run(store, tmp_path):
    config = REMOVAL.configure(profile="quick", trials=2, **TINY)
    cache = tmp_path / "killed"
    checkpoints = "networks/*.work/checkpoint.safetensors"
    kill_when(cache, lambda: len(networks(cache)) >= 1)  # of six networks
    kill_when(cache, lambda: len(networks(cache)) >= 3 and any(cache.glob(checkpoints)))
    finished = {path: path.stat().st_mtime_ns for path in networks(cache)}
    command = [sys.executable, "-c", SCRIPT, str(cache)]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert len(networks(cache)) == 6
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # not trained again
    resumed, unbroken = read_record(Path(path)), run(REMOVAL, config, store=store, device="cpu")
    assert resumed.metrics == unbroken.metrics
    assert resumed.digest == unbroken.digest
    arrays = [record.path.with_suffix(".safetensors") for record in (resumed, unbroken)]
    assert arrays[0].read_bytes() == arrays[1].read_bytes()


def test_finishing_twice_changes_no_byte(store):
    config = REMOVAL.configure(profile="quick", trials=1, **TINY)
    record = run(REMOVAL, config, store=store, device="cpu")
    before = files_in(store.cache)
    assert run(REMOVAL, config, store=store, device="cpu") == record
    assert files_in(store.cache) == before
    # Without the record, the finished trials give the same numbers and arrays again.
    record.path.unlink()
    assert run(REMOVAL, config, store=store, device="cpu").digest == record.digest
    assert not list(store.cache.rglob("*.work"))
    assert not list(store.cache.rglob("*.lock"))


def test_two_processes_that_share_networks_give_the_record_of_one(store, tmp_path):
    """Both shares train the same clean network, so both workers want it at about the same time."""
    config = REMOVAL.configure(profile="quick", trials=1, shares=(0.05, 0.1), **TINY)
    with ProcessPoolExecutor(
        2,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        spread = run(REMOVAL, config, store=store, device="cpu", executor=pool)
    other = Store(frozen=None, cache=tmp_path / "inline")
    inline = run(REMOVAL, config, store=other, device="cpu")
    assert spread.metrics == inline.metrics
    assert spread.digest == inline.digest
    assert spread.config == inline.config
    assert len(networks(store.cache)) == len(networks(other.cache)) == 5  # the clean one is shared


def test_a_network_from_the_store_computes_to_the_last_bit_what_the_trained_one_did(store):
    images = load("digits").first_per_class(20)
    recipe = Recipe(epochs=2, batch_size=64, learning_rate=0.05)
    found = []
    for _ in range(2):
        network = trained_network(
            Context(store=store), images, recipe, model="small_cnn", seed=0, label="", cost=Cost()
        )
        found.append(features(network, images.x, "hidden"))
    assert len(networks(store.cache)) == 1
    assert torch.equal(*found)


def test_a_checkpoint_of_another_run_is_refused(tmp_path, make_images):
    images, path = make_images(40), tmp_path / "checkpoint.safetensors"
    recipe = Recipe(epochs=2, batch_size=16, crop_padding=1)
    fit(create("resnet8", like=images, seed=0), images, recipe, seed=0, checkpoint=path)
    others = (
        {"recipe": replace(recipe, learning_rate=0.01)},
        {"seed": 1},
        {"images": make_images(40, seed=5)},
        {"statistics": "running"},
    )
    for other in others:
        given = {"images": images, "recipe": recipe, "seed": 0} | other
        network = create("resnet8", like=images, seed=0)
        with pytest.raises(PoisonkitError, match="a checkpoint of another run"):
            fit(network, given.pop("images"), given.pop("recipe"), checkpoint=path, **given)


def test_a_damaged_checkpoint_is_named(tmp_path, make_images):
    images, path = make_images(40), tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"")
    network = create("resnet8", like=images, seed=0)
    with pytest.raises(PoisonkitError, match=r"checkpoint\.safetensors is damaged"):
        fit(network, images, Recipe(epochs=1), seed=0, checkpoint=path)
