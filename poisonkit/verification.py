"""A frozen record, and the same made anew here: what each says, side by side."""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poisonkit.claims import EXHIBITS
from poisonkit.devices import choose_device, name_of
from poisonkit.errors import PoisonkitError, look_up
from poisonkit.experiments import EXPERIMENTS, run
from poisonkit.scorecard import Judgement, records_of
from poisonkit.store import Record, Store, default_store


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two records of one configuration.

    Attributes
    ----------
    numbers, differing : how many numbers they hold, and how many of them are not equal, or
        are in one of the two alone.
    judgements : for each exhibit of the experiment what its rule says of either.
    """

    frozen: Record
    made: Record
    numbers: int
    differing: int
    judgements: list[tuple[Judgement, Judgement]]

    @property
    def identical(self) -> bool:
        """Tell whether numbers and arrays are equal to the last byte."""
        return self.frozen.digest == self.made.digest

    @property
    def same_images(self) -> bool:
        """Tell whether both were made from the same images."""
        return bool(
            self.frozen.provenance["data_checksum"] == self.made.provenance["data_checksum"]
        )

    @property
    def verdicts_agree(self) -> bool:
        return all(one.verdict == other.verdict for one, other in self.judgements)


def verify(
    experiment: str,
    *,
    profile: str,
    store: Store | None = None,
    device: str = "auto",
    data_root: Path | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> Comparison:
    """Make a frozen record anew, into the cache, and compare the two.

    What the cache holds of it already, networks and finished trials, is not made again.

    Raises
    ------
    PoisonkitError
        If there is no such experiment, no frozen record of the profile, or the cache has the
        record from another device.
    """
    chosen = look_up("experiment", experiment, EXPERIMENTS)
    store = store or default_store()
    kept = [
        record
        for record in records_of(experiment, store, profiles=[profile])
        if store.frozen is not None and record.path.is_relative_to(store.frozen)
    ]
    if not kept:
        raise PoisonkitError(
            f"there is no frozen record of {experiment} at {profile}; "
            f"to make one: poisonkit run {experiment} --profile {profile} --freeze"
        )
    own, wanted = replace(store, frozen=None), name_of(choose_device(device))
    before = own.find(chosen.name, chosen.version, kept[0].config)
    if before and before.provenance["device"] != wanted:
        raise PoisonkitError(
            f"{before.path} was made on {before.provenance['device']}, not on {wanted}; remove "
            "it, or name another folder in POISONKIT_CACHE"
        )
    made = run(
        chosen,
        chosen.configure(profile=profile),
        store=own,
        device=device,
        data_root=data_root,
        executor=executor,
        progress=progress,
    )
    return compare(kept[0], made)


def compare(frozen: Record, made: Record) -> Comparison:
    """Hold two records of one experiment side by side."""
    ours, theirs = dict(_numbers(frozen.metrics)), dict(_numbers(made.metrics))
    names = ours.keys() | theirs.keys()
    differing = sum(ours.get(name) != theirs.get(name) for name in names)
    judgements = [
        (
            Judgement(exhibit_of=exhibit, outcome=exhibit.judge(frozen), record=frozen),
            Judgement(exhibit_of=exhibit, outcome=exhibit.judge(made), record=made),
        )
        for exhibit in EXHIBITS
        if exhibit.judge is not None and exhibit.experiment == frozen.experiment
    ]
    return Comparison(
        frozen=frozen, made=made, numbers=len(names), differing=differing, judgements=judgements
    )


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers below a JSON value, each by the path to it."""
    if isinstance(value, int | float):  # bool is one, too
        yield name, float(value)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _numbers(entry, f"{name}.{key}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _numbers(entry, f"{name}.{index}")
