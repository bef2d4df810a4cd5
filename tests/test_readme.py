"""What README and the papers' pages say about results is what the records say."""

import re
from pathlib import Path

from poisonkit.claims import EXHIBITS
from poisonkit.figures.common import frozen_records
from poisonkit.scorecard import judge_all
from poisonkit.store import Store

CHECKOUT = Path(__file__).resolve().parent.parent
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def frozen_only(tmp_path: Path) -> Store:
    return Store(frozen=CHECKOUT / "results", cache=tmp_path)


def pages() -> dict[str, str]:
    """The papers' pages by the papers' names."""
    texts = [page.read_text(encoding="utf-8") for page in (CHECKOUT / "book").glob("*.md")]
    found = {text.splitlines()[0].removeprefix("# "): text for text in texts}
    return {name: found[name] for name in {exhibit.paper for exhibit in EXHIBITS}}


def test_readme_counts_the_verdicts_of_every_paper(tmp_path: Path) -> None:
    judged = judge_all(frozen_only(tmp_path))
    counted = {
        paper: tuple(
            sum(j.paper == paper and j.verdict == verdict for j in judged)
            for verdict in ("reproduced", "partly", "not", "not attempted")
        )
        for paper in {j.paper for j in judged}
    }
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", README, re.MULTILINE)
    assert {name: tuple(map(int, numbers)) for name, *numbers in rows} == counted


def test_pages_quote_verdicts_and_measured_numbers_of_single_exhibits(tmp_path: Path) -> None:
    judged = {(j.paper, j.exhibit): j for j in judge_all(frozen_only(tmp_path)) if j.outcome}
    for paper, text in pages().items():
        quoted = 0
        rows = re.findall(r"^\| ([^|]+) \| (reproduced|partly|not) \| (.+) \|$", text, re.MULTILINE)
        for exhibit, verdict, said in rows:
            judgement = judged[paper, exhibit]
            assert judgement.verdict == verdict, exhibit
            # As a number of its own: 5.0 % does not stand in "15.0 %".
            measured = re.escape(judgement.show_measured().split(" [")[0])
            assert re.search(rf"(?<![\d.,]){measured}", said), exhibit
            quoted += 1
        assert quoted >= 9, paper


def test_readme_says_of_a_paper_no_number_that_its_page_does_not() -> None:
    parts = re.split(
        r"^\*\*\[(.+)\]\(book/\w+\.md\)\.\*\*", README.split("## Speed")[0], flags=re.MULTILINE
    )
    said = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(said) == set(pages())
    for paper, text in said.items():
        numbers = set(re.findall(r"\d[\d,.]*\d|\d", text))
        assert len(numbers) >= 5
        here = set(re.findall(r"\d[\d,.]*\d|\d", pages()[paper]))
        assert numbers <= here, paper


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


#: The rows of the table of Deep Confuse's networks, by surrogates and classifiers.
SWITCH_OF = {
    ("with maxima", "the same"): "paper",
    ("with averages", "the same"): "average pooling",
    ("with maxima, 5×5 kernels and no padding", "the same"): "5x5 kernels without padding",
    ("with maxima and normalised logits", "the same"): "normalised logits",
    ("with averages and normalised logits (the default)", "the same"): (
        "average pooling, normalised logits"
    ),
    ("with maxima, without batch normalisation", "the same"): "no batch normalisation",
    ("of the released code (the three changes)", "the same"): "released network",
    ("with averages", "with maxima"): "surrogates with average pooling",
    ("with maxima, 5×5 kernels and no padding", "with maxima"): "surrogates with 5x5 kernels",
    ("with maxima and normalised logits", "with maxima"): "surrogates with normalised logits",
    ("of the released code", "with maxima"): "released network for surrogates",
    ("with maxima", "of the released code"): "released network for classifiers",
    ("with maxima, trained at the paper's rate, 0.01", "with maxima"): (
        "rate of the surrogates 0.01"
    ),
    ("of the released code, trained at 0.01", "the same"): "released network, rate 0.01",
}


def test_the_table_of_deep_confuses_networks_says_what_the_record_says(tmp_path: Path) -> None:
    [record] = frozen_records("deep_confuse/switches", store=frozen_only(tmp_path))
    means = {row["switch"]: row["perturbed.accuracy"]["mean"] for row in record.metrics["rows"]}
    page = pages()["Deep Confuse"]
    rows = re.findall(
        r"^\| ((?:of the|with) [^|]*) \| ([^|]+) \| ([\d.]+) % \(", page, re.MULTILINE
    )
    said = {(surrogates, classifiers): number for surrogates, classifiers, number in rows}
    assert said == {key: f"{100 * means[switch]:.1f}" for key, switch in SWITCH_OF.items()}
