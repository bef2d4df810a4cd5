"""Results: computed once, written whole or not at all, verified when read, resumed after a kill."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import poisonkit.store as store_module
from poisonkit.errors import PoisonkitError
from poisonkit.store import Store, canonical, default_store, digest_of, key_of, read_record

CONFIG = {"profile": "quick", "variant": "paper", "seed": 0, "rate": 0.1}
ARRAYS = {"scores": torch.arange(6.0).view(2, 3), "poisoned": torch.tensor([True, False])}


def save(store: Store, **changes):
    content = {
        "experiment": "paper/family", "version": 1, "config": CONFIG, "metrics": {"left": 3},
        "arrays": ARRAYS, "provenance": {"seconds": 1.5},
    }  # fmt: skip
    return store.save(**{**content, **changes})


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Keys and digests ---------------------------------------------------------------------------


def test_a_key_depends_on_every_part_and_not_on_the_order_of_names():
    assert key_of("a", {"x": 1, "y": [2]}) == key_of("a", {"y": [2], "x": 1})
    others = [("b", {"x": 1}), ("a", {"x": 2}), ("a", {"x": 1.5}), ("a", {"x": "1"}), ("a", {})]
    assert len({key_of(*parts) for parts in [("a", {"x": 1}), *others]}) == 6
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))


def test_a_digest_sees_every_number_name_type_and_shape():
    tensor = torch.arange(6.0)
    digests = [
        digest_of({"left": 3}, {"a": tensor}),
        digest_of({"left": 4}, {"a": tensor}),
        digest_of({"left": 3}, {"b": tensor}),
        digest_of({"left": 3}, {"a": tensor.view(2, 3)}),
        digest_of({"left": 3}, {"a": tensor.view(torch.int32)}),
        digest_of({"left": 3}, {"a": tensor + torch.tensor([0, 0, 0, 0, 0, 1e-6])}),
        digest_of({"left": 3}, {}),
    ]
    assert len(set(digests)) == len(digests)
    turned = tensor.view(2, 3).T.contiguous().T  # the same values, laid out otherwise
    assert digest_of({}, {"a": turned}) == digest_of({}, {"a": tensor.view(2, 3)})


# Records ------------------------------------------------------------------------------------


def test_a_record_read_back_is_the_one_saved(store):
    saved = save(store)
    found = store.find("paper/family", 1, CONFIG)
    assert found == saved == read_record(saved.path) == read_record(str(saved.path))
    assert (found.metrics, found.config, found.profile) == ({"left": 3}, CONFIG, "quick")
    assert found.arrays.keys() == ARRAYS.keys()
    for name, tensor in ARRAYS.items():
        assert torch.equal(found.arrays[name], tensor)
        assert found.arrays[name].dtype == tensor.dtype
    assert [record.path for record in store.records()] == [saved.path]
    assert list(store.records("paper/other")) == []


def test_another_configuration_or_version_is_another_record(store):
    save(store)
    assert store.find("paper/family", 2, CONFIG) is None
    assert store.find("paper/family", 1, {**CONFIG, "rate": 0.2}) is None
    assert store.find("paper/families", 1, CONFIG) is None


def test_a_frozen_record_is_found_before_a_cached_one(store):
    cached = save(store, metrics={"left": 1})
    frozen = save(store, metrics={"left": 2}, freeze=True)
    assert cached.path.is_relative_to(store.cache)
    assert frozen.path.is_relative_to(store.frozen)
    assert store.find("paper/family", 1, CONFIG).metrics == {"left": 2}
    assert [record.metrics["left"] for record in store.records()] == [2, 1]
    without = replace(store, frozen=None)
    assert without.find("paper/family", 1, CONFIG).metrics == {"left": 1}
    with pytest.raises(PoisonkitError, match="no results/ folder"):
        save(without, freeze=True)


def test_freezing_copies_a_record_with_its_provenance_and_leaves_a_frozen_one_alone(store):
    cached = save(store)
    frozen = store.freeze(cached)
    assert frozen == replace(cached, path=frozen.path)
    assert frozen.path.is_relative_to(store.frozen)
    assert files_in(store.frozen) == files_in(store.cache / "records")
    assert store.freeze(frozen) is frozen
    with pytest.raises(PoisonkitError, match="no results/ folder"):
        replace(store, frozen=None).freeze(cached)


def test_saving_the_same_result_twice_writes_the_same_bytes(store):
    save(store)
    before = files_in(store.cache)
    save(store)
    assert files_in(store.cache) == before
    assert len(before) == 2  # and no partial file is left


def test_numbers_or_arrays_that_were_changed_do_not_match_the_digest(store):
    path = save(store).path
    text = path.read_text()
    path.write_text(text.replace('"left": 3', '"left": 0'))
    with pytest.raises(PoisonkitError, match=rf"{path.name} and its arrays do not match"):
        _ = read_record(path).arrays
    path.write_text(text)
    tensors = path.with_suffix(".safetensors")
    data = tensors.read_bytes()
    for damaged in (data[:-1] + bytes([data[-1] ^ 1]), data[:-5], data[:5], None):
        tensors.unlink()
        if damaged is not None:
            tensors.write_bytes(damaged)
        with pytest.raises(PoisonkitError, match=path.stem):
            _ = read_record(path).arrays
        tensors.write_bytes(data)
    assert torch.equal(read_record(path).arrays["scores"], ARRAYS["scores"])


@pytest.mark.parametrize("damage", ["cut", "other JSON", "no JSON", "bytes", "format"])
def test_a_record_that_is_not_whole_is_an_error_that_names_the_file(damage, store):
    path = save(store).path
    text = path.read_text()
    content = {
        "cut": text[:-30],
        "other JSON": "[1, 2]",
        "no JSON": "metrics: none",
        "bytes": "\udcff\udcfe",
        "format": text.replace('"format": 1', '"format": 9'),
    }[damage]
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(PoisonkitError, match=path.name):
        store.find("paper/family", 1, CONFIG)


def test_the_default_store_has_the_checkouts_results_and_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POISONKIT_CACHE", str(tmp_path))
    found = default_store()
    assert found.cache == tmp_path
    assert found.frozen in (None, Path(__file__).resolve().parents[1] / "results")


# Artefacts ----------------------------------------------------------------------------------


def test_an_artefact_is_computed_once_for_each_specification(store):
    calls = []

    def compute(scratch: Path):
        calls.append(scratch)
        return {"loss": 0.5, "seconds": 4.0}, {"w": torch.ones(2)}

    found = [store.artefact("networks", {"seed": seed}, compute) for seed in (1, 1, 2)]
    assert len(calls) == 2
    assert found[0].key == found[1].key != found[2].key
    assert [artefact.metrics for artefact in found] == [{"loss": 0.5}] * 3
    assert [artefact.seconds for artefact in found] == [4.0] * 3
    assert all(torch.equal(artefact.tensors["w"], torch.ones(2)) for artefact in found)
    assert not any(scratch.exists() for scratch in calls)


def test_an_artefact_is_of_the_commit_that_its_computation_began_with(store, monkeypatch):
    asked = []
    monkeypatch.setattr(store_module, "describe", lambda: asked.append(None) or {"commit": "a"})

    def compute(scratch):
        assert asked
        return {}, {}

    store.artefact("networks", {"seed": 1}, compute)


def test_a_computation_that_fails_leaves_no_artefact_but_its_scratch(store):
    def fail(scratch: Path):
        (scratch / "checkpoint").write_text("half-way")
        raise KeyboardInterrupt

    def finish(scratch: Path):
        return {"found": (scratch / "checkpoint").read_text()}, {}

    with pytest.raises(KeyboardInterrupt):
        store.artefact("networks", {"seed": 1}, fail)
    assert not list(store.cache.rglob("*.json"))
    assert store.artefact("networks", {"seed": 1}, finish).metrics == {"found": "half-way"}
    assert {p.suffix for p in (store.cache / "networks").iterdir()} == {".json", ".safetensors"}


def test_two_that_ask_for_the_same_artefact_at_once_share_one_computation(store):
    calls, found = [], []

    def compute(scratch: Path):
        calls.append(scratch)
        file = scratch / "checkpoint"
        file.write_text("half-way")
        time.sleep(0.2)  # long enough for the other to come along
        return {"found": file.read_text()}, {"w": torch.ones(2)}

    def ask():
        found.append(store.artefact("networks", {"seed": 1}, compute))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [artefact.metrics for artefact in found] == [{"found": "half-way"}] * 3
    assert len(calls) == 1


@pytest.mark.parametrize("file", ["json", "safetensors"])
def test_a_damaged_artefact_is_an_error_that_names_the_file(file, store):
    def compute(scratch: Path):
        return {"loss": 0.5}, {"w": torch.ones(2)}

    key = store.artefact("networks", {"seed": 1}, compute).key
    path = store.cache / "networks" / f"{key}.{file}"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(PoisonkitError, match=path.stem):
        store.artefact("networks", {"seed": 1}, compute)
    path.unlink()
    if file == "safetensors":
        with pytest.raises(PoisonkitError, match=path.stem):
            store.artefact("networks", {"seed": 1}, compute)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_have_is_named_before_anything_is_written(odd, store):
    metrics = {"rows": [{"rate": 0.5}, {"rate": odd}]}
    with pytest.raises(PoisonkitError, match=r"rows\.1\.rate is not a finite number"):
        store.artefact("trials", {"seed": 1}, lambda scratch: (metrics, {}))
    assert not list(store.cache.rglob("*.json"))
    assert not list(store.cache.rglob("*.safetensors"))
