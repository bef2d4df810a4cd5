"""A frozen record made anew: what is compared, what is refused, and what the command says."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from poisonkit import verification
from poisonkit.cli import main
from poisonkit.errors import PoisonkitError
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.store import Store, digest_of
from poisonkit.verification import compare, verify

LEMMA = "spectral_signatures/lemma"


def changed(record, **metrics):
    """The record with other numbers, in memory alone."""
    metrics = {**record.metrics, **metrics}
    return replace(record, metrics=metrics, digest=digest_of(metrics, record.arrays))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one frozen record, of the lemma with few and small draws."""
    below = tmp_path_factory.mktemp("verified")
    store = Store(frozen=below / "results", cache=below / "cache")
    run(EXPERIMENTS[LEMMA], few(), store=store, device="cpu", freeze=True)
    return store


def few():
    return EXPERIMENTS[LEMMA].configure(profile="small", trials=1, samples=3000, dimensions=3)


@pytest.fixture
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `small` be the few draws of the frozen record."""
    profiles = {**EXPERIMENTS[LEMMA].profiles}
    profiles["small"] = {**profiles["small"], "trials": 1, "samples": 3000, "dimensions": 3}
    monkeypatch.setitem(EXPERIMENTS, LEMMA, replace(EXPERIMENTS[LEMMA], profiles=profiles))


def test_a_record_made_anew_is_identical_and_the_frozen_one_is_left_alone(kept, fewer, tmp_path):
    files = {path: path.read_bytes() for path in kept.frozen.rglob("*.*")}
    # With an empty cache, so that nothing of the frozen record's making is found again.
    anew = replace(kept, cache=tmp_path)
    found = verify(LEMMA, profile="small", store=anew, device="cpu")
    assert found.identical
    assert found.verdicts_agree
    assert found.same_images
    assert found.differing == 0
    assert found.numbers > 10
    assert found.frozen.path.is_relative_to(kept.frozen)
    assert found.made.path.is_relative_to(tmp_path)
    assert [one.exhibit for one, _ in found.judgements] == ["Lemma 3.1"]
    assert {path: path.read_bytes() for path in kept.frozen.rglob("*.*")} == files


def test_numbers_that_differ_or_are_in_one_alone_are_counted(kept, fewer):
    record = verify(LEMMA, profile="small", store=kept, device="cpu").made
    one = changed(record, extra=[1.0, {"a": 3}], flag=True)
    other = changed(record, extra=[1.5, {"a": 3}], more=2)
    found = compare(one, other)
    assert not found.identical
    # extra.0; flag, which the second has not; more, which the first has not.
    assert found.differing == 3


def test_other_images_and_another_verdict_are_told(kept, fewer, monkeypatch, capsys):
    true = verify(LEMMA, profile="small", store=kept, device="cpu")
    origin = {**true.made.provenance, "data_checksum": "of other images"}
    (one, other), *_ = true.judgements
    worse = replace(other, outcome=replace(other.outcome, verdict="not", measured=0.25))
    made = replace(changed(true.made, more=2), provenance=origin)
    told = replace(compare(true.frozen, made), judgements=[(one, worse)])
    monkeypatch.setattr(verification, "verify", lambda *_, **__: told)
    monkeypatch.setattr(sys, "argv", ["poisonkit", "verify", LEMMA])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "different images" in printed
    assert f"Lemma 3.1: frozen {one.show_measured()} reproduced, made anew 25.0 %" in printed
    assert printed.splitlines()[-1].startswith(f"1 of {true.numbers + 1} numbers differ")


def test_without_a_frozen_record_it_is_said_how_one_is_made(store: Store, tmp_path: Path):
    for own in (store, replace(store, frozen=None)):
        with pytest.raises(PoisonkitError, match=f"poisonkit run {LEMMA} --profile small --freeze"):
            verify(LEMMA, profile="small", store=own)


def test_a_record_of_the_cache_is_not_taken_for_a_frozen_one(store: Store, fewer):
    run(EXPERIMENTS[LEMMA], few(), store=store, device="cpu")
    with pytest.raises(PoisonkitError, match="no frozen record"):
        verify(LEMMA, profile="small", store=store, device="cpu")


def test_a_record_of_another_device_in_the_cache_is_not_taken_for_one_made_here(
    kept, fewer, tmp_path
):
    """The key of a record does not say where it was made; what it was asked for does."""
    anew = replace(kept, cache=tmp_path)
    made = verify(LEMMA, profile="small", store=anew, device="cpu").made
    content = json.loads(made.path.read_text())
    content["provenance"]["device"] = "a GPU"
    made.path.write_text(json.dumps(content))
    with pytest.raises(PoisonkitError, match="was made on a GPU, not on"):
        verify(LEMMA, profile="small", store=anew, device="cpu")
