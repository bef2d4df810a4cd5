"""What README says about results is what the records say."""

import re
from pathlib import Path

from poisonkit.figures.common import frozen_records
from poisonkit.scorecard import judge_all
from poisonkit.store import Store

CHECKOUT = Path(__file__).resolve().parent.parent
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def frozen_only(tmp_path: Path) -> Store:
    return Store(frozen=CHECKOUT / "results", cache=tmp_path)


def test_readme_has_the_verdict_of_every_judged_exhibit_and_no_other(tmp_path: Path) -> None:
    judged = {j.exhibit: j.verdict for j in judge_all(frozen_only(tmp_path)) if j.outcome}
    written = re.findall(r"^\| ([^|]+) \| (reproduced|partly|not) \|", README, re.MULTILINE)
    assert dict(written) == judged


def test_readme_quotes_the_measured_numbers(tmp_path: Path) -> None:
    for judgement in judge_all(frozen_only(tmp_path)):
        if judgement.outcome:
            assert judgement.show_measured().split(" [")[0] in README


def test_every_frozen_record_is_whole_and_was_made_by_a_known_profile(tmp_path: Path) -> None:
    records = list(frozen_only(tmp_path).records())
    assert records
    for record in records:
        assert isinstance(record.arrays, dict)
        assert record.profile in ("small", "paper")
        assert record in frozen_records(record.experiment, store=frozen_only(tmp_path))


def test_pages_have_no_number_left_to_fill_in() -> None:
    for page in (CHECKOUT / "README.md", *(CHECKOUT / "book").glob("*.md")):
        assert "@@" not in page.read_text(encoding="utf-8"), page
