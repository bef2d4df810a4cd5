"""The papers' numbers beside ours, with a verdict for each exhibit."""

from collections.abc import Sequence
from dataclasses import dataclass

from poisonkit.claims import EXHIBITS, Exhibit, Outcome, Verdict
from poisonkit.errors import look_up
from poisonkit.experiments import EXPERIMENTS
from poisonkit.experiments.running import CHECKSUM
from poisonkit.experiments.settings import as_json
from poisonkit.store import Json, Record, Store, default_store

#: Only these profiles are run on the papers' data; the larger one counts.
JUDGED_PROFILES = ("paper", "small")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """An exhibit, and what the best record there is says about it."""

    exhibit_of: Exhibit
    outcome: Outcome | None
    record: Record | None

    @property
    def paper(self) -> str:
        return self.exhibit_of.paper

    @property
    def exhibit(self) -> str:
        return self.exhibit_of.exhibit

    @property
    def verdict(self) -> Verdict:
        return self.outcome.verdict if self.outcome else "not attempted"

    @property
    def n(self) -> int:
        """How many runs it rests on; 0 without a record."""
        return self.outcome.n if self.outcome else 0

    @property
    def profile(self) -> str | None:
        return self.record.profile if self.record else None

    @property
    def _sign(self) -> str:
        """What stands behind a share of 1 that is shown as one of 100; nothing for a number."""
        return {"rate": " %", "points": " points"}.get(self.exhibit_of.unit, "")

    def show_reported(self) -> str:
        reported = self.exhibit_of.reported
        if reported is None and self.exhibit_of.experiment:
            return "(picture)" if self.exhibit.startswith("Figure") else "(not at hand)"
        if reported is None:
            return "-"
        # Four significant digits, as many as the papers print.
        return f"{100 * reported:.4g}{self._sign}" if self._sign else f"{reported:.3f}"

    def show_measured(self) -> str:
        if self.outcome is None:
            return "-"
        low, high = self.outcome.interval
        if not self._sign:
            return f"{self.outcome.measured:.3f} [{low:.3f}, {high:.3f}]"
        return f"{100 * self.outcome.measured:.1f}{self._sign} [{100 * low:.1f}, {100 * high:.1f}]"


def judge(exhibit: Exhibit, store: Store) -> Judgement:
    """Judge an exhibit by the record of the largest profile that covers it."""
    if exhibit.experiment is not None and exhibit.judge is not None:
        for record in records_of(exhibit.experiment, store, profiles=JUDGED_PROFILES):
            if outcome := exhibit.judge(record):
                return Judgement(exhibit_of=exhibit, outcome=outcome, record=record)
    return Judgement(exhibit_of=exhibit, outcome=None, record=None)


def records_of(
    experiment: str, store: Store, *, profiles: Sequence[str] = JUDGED_PROFILES
) -> list[Record]:
    """Return the records of an experiment's unchanged profiles, as far as they exist."""
    chosen = look_up("experiment", experiment, EXPERIMENTS)
    found = []
    for profile in profiles:
        config = as_json(chosen.configure(profile=profile))
        record = store.find(experiment, chosen.version, config)
        found.append(record or _on_any_images(experiment, chosen.version, config, store))
    return [record for record in found if record is not None]


def _on_any_images(experiment: str, version: int, config: Json, store: Store) -> Record | None:
    """Return the first record of a configuration whose name does not determine its data.

    Its own configuration holds the checksums of the images that its maker had.
    """
    if config.get("dataset") != "imagenet2":
        return None
    for record in store.records(experiment):
        stated = {k: v for k, v in record.config.items() if not k.endswith(CHECKSUM)}
        if record.version == version and stated == config:
            record.arrays  # noqa: B018  (reading them checks the digest)
            return record
    return None


def judge_all(store: Store | None = None) -> list[Judgement]:
    """Judge every exhibit of the four papers."""
    store = store or default_store()
    return [judge(exhibit, store) for exhibit in EXHIBITS]


def as_rows(judgements: Sequence[Judgement]) -> list[Json]:
    """Return one JSON object an exhibit; rates are shares, not percent."""
    return [
        {
            "paper": judgement.paper,
            "exhibit": judgement.exhibit,
            "profile": judgement.profile,
            "quantity": judgement.exhibit_of.quantity or None,
            "reported": judgement.exhibit_of.reported,
            "measured": judgement.outcome.measured if judgement.outcome else None,
            "interval": list(judgement.outcome.interval) if judgement.outcome else None,
            "n": judgement.n,
            "verdict": judgement.verdict,
            "record": judgement.record.path.name if judgement.record else None,
        }
        for judgement in judgements
    ]
