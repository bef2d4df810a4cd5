"""Tables that every page ends with, and the choice of records to show."""

from collections.abc import Sequence

import pandas as pd
from pandas.io.formats.style import Styler

from poisonkit.experiments import EXPERIMENTS
from poisonkit.scorecard import JUDGED_PROFILES, Judgement, judge_all, records_of
from poisonkit.store import Record, Store, default_store

VERDICT_MARKS = {"reproduced": "✔", "partly": "◐", "not": "✘", "not attempted": "–"}


def plain(table: pd.DataFrame) -> Styler:
    """Return a table as it shall appear on a page: no row numbers, text to the left."""
    return table.style.hide(axis="index").set_table_styles(
        [{"selector": "th, td", "props": "text-align: left; white-space: normal"}]
    )


def frozen_records(
    experiment: str, *, shown: str = "quick", store: Store | None = None
) -> list[Record]:
    """Return the records made on the paper's data, largest profile first.

    Parameters
    ----------
    shown : the profile that the page runs live, whose record is not repeated.
    """
    profiles = [profile for profile in JUDGED_PROFILES if profile != shown]
    return records_of(experiment, store or default_store(), profiles=profiles)


def origin(records: Sequence[Record]) -> Styler:
    """Return where each record comes from and what it cost."""
    rows = [
        {
            "Record": record.path.name,
            "Profile": record.profile,
            "Data": f"{record.config['dataset']}, {record.provenance['data_checksum'][:12]}",
            "Device": f"{record.provenance['device']}, {record.provenance['threads']} threads",
            "Minutes": f"{record.provenance['seconds'] / 60:.1f}",
            "Memory": f"{record.provenance['peak_memory_mib'] / 1024:.1f} GiB",
            "torch": record.provenance["torch"],
            "Commit": str(record.provenance["commit"])[:10],
        }
        for record in records
    ]
    return plain(pd.DataFrame(rows))


def verdicts(experiment: str) -> Styler:
    """Return the scorecard's rows that rest on one experiment, with their rules."""
    rows = [
        {
            "Exhibit": judgement.exhibit,
            "Verdict": f"{VERDICT_MARKS[judgement.verdict]} {judgement.verdict}",
            "Reported": judgement.show_reported(),
            "Measured": judgement.show_measured(),
            "Runs": judgement.outcome.n if judgement.outcome else 0,
            "Rule": judgement.exhibit_of.rule,
        }
        for judgement in judge_all()
        if judgement.exhibit_of.experiment == experiment and judgement.outcome
    ]
    return plain(pd.DataFrame(rows))


def tally(judgements: Sequence[Judgement]) -> Styler:
    """Return how many exhibits of each paper have which verdict."""
    table = pd.crosstab(
        pd.Series([judgement.paper for judgement in judgements], name="Paper"),
        pd.Series([judgement.verdict for judgement in judgements], name="Verdict"),
    )
    ordered = table.reindex(columns=list(VERDICT_MARKS), fill_value=0)
    return plain(ordered.sort_values("not attempted").reset_index().rename_axis(columns=None))


def scorecard(paper: str) -> Styler:
    """Return the scorecard of one paper, with what it claims and how each verdict was reached."""
    rows = [
        {
            "Exhibit": judgement.exhibit,
            "Claim": judgement.exhibit_of.claim,
            "Verdict": f"{VERDICT_MARKS[judgement.verdict]} {judgement.verdict}",
            "Reported": judgement.show_reported(),
            "Measured [interval]": judgement.show_measured(),
            "Runs": judgement.outcome.n if judgement.outcome else "-",
            "Profile": judgement.record.profile if judgement.record else "-",
        }
        for judgement in judge_all()
        if judgement.paper == paper
    ]
    return plain(pd.DataFrame(rows))


def scale(record: Record) -> str:
    """Return in one sentence what of the paper's setting a record's profile changes."""
    experiment = EXPERIMENTS[record.experiment]
    changed = experiment.profiles[record.profile]
    if not changed:
        return "The paper's setting, nothing changed."
    listed = ", ".join(f"{name} = {value}" for name, value in changed.items())
    return f"Changed from the paper's setting: {listed}."
