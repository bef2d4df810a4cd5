"""Tables that every page ends with, and the choice of records to show."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import ascii_uppercase

import pandas as pd
from pandas.io.formats.style import Styler

from poisonkit.claims import EXHIBITS
from poisonkit.experiments import EXPERIMENTS
from poisonkit.experiments.settings import as_json, options_of
from poisonkit.options import default_of
from poisonkit.scorecard import JUDGED_PROFILES, Judgement, judge, judge_all, records_of
from poisonkit.store import Json, Record, Store, default_store

VERDICT_MARKS = {"reproduced": "✔", "partly": "◐", "not": "✘", "not attempted": "–"}


@dataclass(frozen=True)
class Html:
    """Something that a notebook shows as the HTML it is."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def plain(table: pd.DataFrame) -> Styler:
    """Return a table as it shall appear on a page: no row numbers, text to the left."""
    return table.style.hide(axis="index").set_table_styles(
        [
            {
                "selector": "th, td",
                "props": "text-align: left; vertical-align: top; white-space: normal; "
                "padding: 0.3em 0.6em; font-size: 0.92em",
            }
        ]
    )


def with_deviation(mean: float, deviation: float | None, *, digits: int = 2) -> str:
    """Return a mean and, where there is one, its standard deviation."""
    spread = "" if deviation is None else f" ± {deviation:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"


def percent(mean: float, deviation: float | None = None, *, digits: int = 2) -> str:
    """Return a mean share with its standard deviation, in percent."""
    scaled = None if deviation is None else 100 * deviation
    return f"{with_deviation(100 * mean, scaled, digits=digits)} %"


def with_interval(rate: float, low: float, high: float, *, digits: int = 0) -> str:
    """Return a rate with its interval, in percent."""
    ends = f"[{100 * low:.{digits}f}, {100 * high:.{digits}f}]"
    return f"{percent(rate, digits=digits)} {ends}"


def hits_of(row: Json) -> str:
    """Return how often something happened, and of how many."""
    return f"{row['hits']} of {row['targets']}"


def counted(row: Json) -> str:
    """Return how often something happened, its rate and the rate's interval."""
    return f"{hits_of(row)}: {with_interval(row['rate'], row['low'], row['high'])}"


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


def frozen_of_each(
    experiments: Mapping[str, str], *, live: str, shown: str, store: Store | None = None
) -> list[tuple[str, Record]]:
    """Return :func:`frozen_records` of several experiments, each with the experiment's key.

    Parameters
    ----------
    experiments : their names, by keys of the page's own.
    live : the key of the one that the page runs live, at profile ``shown``.
    """
    return [
        (key, record)
        for key, name in experiments.items()
        for record in frozen_records(name, shown=shown if key == live else "quick", store=store)
    ]


def origin(records: Sequence[Record]) -> Html:
    """Return where each record comes from and what it cost, one column a record.

    Where two are of one profile another table begins.
    """
    tables: list[dict[str, Json]] = [{}]
    for record in records:
        title = f"{record.profile} profile"
        if title in tables[-1]:
            tables.append({})
        tables[-1][title] = {
            "Record": record.path.name,
            "Data": _data(record),
            "Device": f"{record.provenance['device']}, {record.provenance['threads']} threads",
            "Time": f"{record.provenance['seconds'] / 60:.1f} minutes",
            "Peak memory": f"{record.provenance['peak_memory_mib'] / 1024:.1f} GiB",
            "Versions": f"poisonkit {record.provenance['poisonkit']}, "
            f"torch {record.provenance['torch']}, Python {record.provenance['python']}",
            "Commit": _short(record.provenance["commit"]),
            "Made": record.provenance["created"],
        }
    return Html("".join(plain(pd.DataFrame(own).reset_index(names="")).to_html() for own in tables))


def _data(record: Record) -> str:
    checksum = record.provenance["data_checksum"]
    if "dataset" not in record.config:
        return str(checksum)
    return f"{record.config['dataset']}, {checksum[:12]}"


def _short(commits: str) -> str:
    """Shorten the names of commits; a plus sign after one says that files differed from it."""
    return ", ".join(name[:8] + name[40:] for name in commits.split(", "))


def heading(title: str) -> Html:
    """Return the title of what a cell shows next."""
    return Html(f"<p><b>{escape(title)}</b></p>")


def verdicts(*experiments: str, store: Store | None = None) -> Html:
    """Return the scorecard's rows that rest on the experiments, and below them their rules."""
    store = store or default_store()
    judged = [judge(one, store) for one in EXHIBITS if one.experiment in experiments]
    if not any(judgement.outcome for judgement in judged):
        return Html("<p>There is no record to judge yet.</p>")
    rules = list(dict.fromkeys(judgement.exhibit_of.rule for judgement in judged))
    letters = dict(zip(rules, ascii_uppercase, strict=False))
    rows = [
        {
            "Exhibit": judgement.exhibit,
            "Verdict": f"{VERDICT_MARKS[judgement.verdict]} {judgement.verdict}",
            "Reported": judgement.show_reported(),
            "Measured": judgement.show_measured(),
            "Runs": judgement.n or "-",
            "Profile": judgement.profile or "-",
            "Rule": letters[judgement.exhibit_of.rule],
        }
        for judgement in judged
    ]
    text = "".join(
        f"<p><b>Rule {letter}</b>: {escape(rule)}.</p>" for rule, letter in letters.items()
    )
    return Html(plain(pd.DataFrame(rows)).to_html() + text)


def tally(judgements: Sequence[Judgement]) -> Styler:
    """Return how many exhibits of each paper have which verdict."""
    papers = list(dict.fromkeys(judgement.paper for judgement in judgements))
    rows = []
    for paper in papers:
        counted = Counter(str(j.verdict) for j in judgements if j.paper == paper)
        marked = {f"{mark} {name}": counted[name] for name, mark in VERDICT_MARKS.items()}
        rows.append({"Paper": paper, **marked})
    return plain(pd.DataFrame(rows))


def scorecard(paper: str) -> Styler:
    """Return the scorecard of one paper; a claim that several rows share is printed once."""
    rows: list[dict[str, object]] = []
    claim = ""
    for judgement in judge_all():
        if judgement.paper != paper:
            continue
        same, claim = judgement.exhibit_of.claim == claim, judgement.exhibit_of.claim
        rows.append(
            {
                "Exhibit": f"<b>{judgement.exhibit}</b>" + ("" if same else f"<br>{claim}"),
                "Verdict": f"{VERDICT_MARKS[judgement.verdict]} {judgement.verdict}",
                "Reported": judgement.show_reported(),
                "Measured [interval]": judgement.show_measured(),
                "Runs": judgement.n or "-",
                "Profile": judgement.profile or "-",
            }
        )
    return plain(pd.DataFrame(rows))


def scale(record: Record) -> Styler:
    """Return what a record changes of the ``paper`` profile, beside that profile's value."""
    experiment = EXPERIMENTS[record.experiment]
    options = options_of(experiment.config)
    ours, paper = record.config, as_json(experiment.configure(profile="paper"))
    usual = experiment.config()
    rows = [
        {"Parameter": name, f"Here, at {record.profile}": found, "At paper": stated}
        for name in options
        if name not in ("profile", "variant")
        if (found := _show(ours, name, usual)) != (stated := _show(paper, name, usual))
    ]
    return plain(pd.DataFrame(rows or [{"Parameter": "nothing is changed"}]))


def _show(config: Json, name: str, usual: object) -> str:
    """Return the value of an option as a text that fits a table.

    Parameters
    ----------
    usual : a configuration of the same kind, for what is not written down.
    """
    value: object = config
    for part in name.split("."):
        assert isinstance(value, dict)
        value = value[part] if part in value else default_of(usual, part)
        usual = getattr(usual, part)
    if isinstance(value, list | tuple):
        return ", ".join(" → ".join(v) if isinstance(v, list) else _rounded(v) for v in value)
    return "not set" if value is None else _rounded(value)


def _rounded(value: object) -> str:
    # Bounds such as 8/255 have sixteen digits.
    return str(float(f"{value:.4g}")) if isinstance(value, float) else str(value)
