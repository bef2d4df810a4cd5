"""The Spectral Signatures paper's numbers, copied from its tables a second time."""

import pytest

from poisonkit.claims import EXHIBITS
from poisonkit.claims.spectral_signatures_reported import (
    CLEAN_ACCURACY,
    PAPER_CAPTURED,
    TABLE_1,
    TABLE_2,
    TABLE_3,
)
from poisonkit.experiments import EXPERIMENTS
from poisonkit.experiments.spectral_signatures.steps import is_captured

OURS = {exhibit.exhibit: exhibit for exhibit in EXHIBITS if exhibit.paper == "Spectral Signatures"}

#: Source and target; Nat 1 / Pois 1 / left / Nat 2 / Pois 2 at 5 % and at 10 %; Std Pois.
COPIED_2 = """
airplane bird    92.27/74.20/57/92.64/2.00  92.32/89.80/7/92.68/1.50  1.20
automobile cat   92.45/83.30/24/92.24/0.20  92.39/92.00/0/92.44/0.00  0.10
automobile dog   92.17/89.80/7/93.01/0.00   92.55/94.30/1/92.64/0.00  0.00
cat horse        92.60/99.80/0/92.57/1.00   92.26/99.80/0/92.63/1.20  0.80
dog cat          92.86/98.60/0/92.79/8.30   92.29/99.10/0/92.57/8.20  8.00
horse deer       92.68/99.30/0/92.68/1.10   92.68/99.90/0/92.74/1.60  1.00
ship frog        92.87/88.80/10/92.61/0.10  92.82/93.70/3/92.74/0.10  0.30
truck bird       92.52/97.90/0/92.69/0.00   92.68/99.30/0/92.45/0.50  0.00
"""
#: The backdoors of each direction, at 5 % and at 10 %.
COPIED_3 = {
    ("automobile", "pets"): """
        93.99/95.80/0/94.18/0.30  94.05/96.70/0/94.27/0.00
        94.28/95.00/0/94.12/0.20  94.13/99.70/0/93.89/0.00
        94.12/89.80/0/94.18/0.10  93.90/93.40/0/94.11/0.10
        93.97/94.80/0/94.42/0.00  94.23/97.20/0/93.96/0.30
    """,
    ("pets", "automobile"): """
        93.96/98.65/0/94.46/0.20  94.18/99.20/0/94.00/0.20
        94.20/99.15/0/94.36/0.25  94.03/99.55/0/94.03/0.10
        93.89/94.40/6/94.20/0.20  94.49/97.20/2/94.49/0.05
        94.26/95.60/5/94.06/0.00  94.20/98.45/1/94.06/0.15
    """,
}


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split("/"))


def test_table_1_is_the_papers():
    birds, with_planes = (1194.223, 1115.931, 967.933), (1613.486, 1206.853, 1129.711)
    cats, with_cars = (1016.919, 891.619, 877.743), (1883.934, 1030.638, 913.895)
    expected = {
        ("airplane", "bird"): (78.751, 78.855, 6.194, birds, with_planes),
        ("automobile", "cat"): (89.409, 89.690, 7.343, cats, with_cars),
    }
    assert expected == TABLE_1


def test_table_2_is_the_papers():
    expected = {}
    for line in COPIED_2.split("\n")[1:-1]:
        source, target, five, ten, clean = line.split()
        for share, cell in ((0.05, five), (0.10, ten)):
            expected[source, target, share] = (*numbers(cell), float(clean))
    assert expected == TABLE_2
    assert CLEAN_ACCURACY == 92.67


def test_table_3_is_the_papers():
    expected = {}
    for pair, text in COPIED_3.items():
        cells = [numbers(cell) for cell in text.split()]
        expected[(*pair, 0.05)], expected[(*pair, 0.10)] = tuple(cells[::2]), tuple(cells[1::2])
    assert expected == TABLE_3


def test_two_runs_of_the_papers_missed_their_backdoor_and_five_percent_was_too_little_for_them():
    missed = [row for row, found in TABLE_2.items() if found[1] < PAPER_CAPTURED]
    assert missed == [("airplane", "bird", 0.05), ("automobile", "cat", 0.05)]
    for row, found in TABLE_2.items():
        assert is_captured(round(10 * found[1]), 1000) == (row not in missed)


# What is shown of them ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exhibit", "reported"),
    [
        ("Table 1: airplane to bird", 1613.486 / 1194.223),
        ("Table 1: automobile to cat", 1883.934 / 1016.919),
        ("Table 2: airplane to bird, 5%", 0.0200),
        ("Table 2: dog to cat, 10%", 0.0820),
        ("Table 2: ship to frog, 10%", 0.0010),
        ("Table 3: automobile to pets, 5%", (0.0030 + 0.0020 + 0.0010 + 0) / 4),
        ("Table 3: automobile to pets, 10%", (0 + 0 + 0.0010 + 0.0030) / 4),
        ("Table 3: pets to automobile, 5%", (0.0020 + 0.0025 + 0.0020 + 0) / 4),
        ("Table 3: pets to automobile, 10%", (0.0020 + 0.0010 + 0.0005 + 0.0015) / 4),
        ("Figure 2", 0.898),
        ("Lemma 3.1", 1.0),
    ],
)
def test_an_exhibit_reports_the_number_that_its_quantity_names(exhibit, reported):
    assert OURS[exhibit].reported == pytest.approx(reported, abs=5e-4 if reported > 1 else 5e-6)


def test_every_row_of_every_table_is_an_exhibit_with_a_judge_a_rule_and_an_experiment():
    rows = {f"Table 2: {source} to {target}, {share:.0%}" for source, target, share in TABLE_2}
    rows |= {f"Table 3: {source} to {target}, {share:.0%}" for source, target, share in TABLE_3}
    rows |= {f"Table 1: {source} to {target}" for source, target in TABLE_1}
    rows |= {"Figure 1", "Figure 2", "Table 2: poisons left", "Table 5: VGG", "Lemma 3.1"}
    assert set(OURS) == rows
    for exhibit in OURS.values():
        assert exhibit.experiment in EXPERIMENTS
        assert exhibit.judge is not None
        assert exhibit.quantity
        for verdict in ("reproduced if", "partly if", "not otherwise", "Interval: "):
            assert verdict in exhibit.rule


@pytest.mark.parametrize("profile", ["small", "paper"])
@pytest.mark.parametrize("name", ["signature", "removal", "subpopulations"])
def test_every_row_is_measured_at_every_profile_that_is_judged(name, profile):
    experiment = EXPERIMENTS[f"spectral_signatures/{name}"]
    units = experiment.units(experiment.configure(profile=profile))
    found = {(unit["source"], unit["target"], unit["share"]) for unit in units}
    expected = {
        "signature": {(*pair, 0.10) for pair in TABLE_1},
        "removal": set(TABLE_2),
        "subpopulations": set(TABLE_3),
    }
    assert found == expected[name]
