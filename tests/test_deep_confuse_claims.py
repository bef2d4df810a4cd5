"""The Deep Confuse rules on records made by hand, at their thresholds and off their data."""

from types import SimpleNamespace

import pytest
import torch

from poisonkit.claims import EXHIBITS
from poisonkit.claims.deep_confuse import CODES_NETWORK, DATASETS
from poisonkit.claims.deep_confuse_reported import FIGURE_6, FIGURE_7, TABLE_1, TABLE_2
from poisonkit.experiments import EXPERIMENTS

OURS = {exhibit.exhibit: exhibit for exhibit in EXHIBITS if exhibit.paper == "Deep Confuse"}


def record(*trials, arrays=None, **metrics):
    """All of a record that a judge may look at."""
    return SimpleNamespace(metrics={"trials": list(trials), **metrics}, arrays=arrays or {})


def attack(clean, perturbed, *, noise=0.5, train=1.0):
    return {
        "clean": {"accuracy": clean},
        "perturbed": {"accuracy": perturbed, "train": [0.5, train], "test": [0.9, perturbed]},
        # The paper's classifier is the one that was trained on perturbed images.
        "on_noise": {"test": noise},
        "noise_alone": {"test": 1 - noise},
    }


def verdict(name, found):
    outcome = OURS[name].judge(found)
    return outcome and outcome.verdict


def test_every_exhibit_of_the_paper_with_a_number_has_a_rule_and_an_experiment():
    numbered = ("Table 1", "Table 2", "Figure 3", "Figure 4", "Figure 5", "Figure 6", "Figure 7")
    for name in (*numbered, "Figure 8", "Figure 10"):
        assert any(exhibit.startswith(name) for exhibit in OURS)
    for exhibit in OURS.values():
        assert exhibit.experiment in EXPERIMENTS
        assert exhibit.judge is not None
        assert exhibit.rule


def test_the_papers_accuracies_are_those_of_its_tables():
    """Copied a second time: clean, perturbed; noise alone on training and on test images."""
    copied = {
        "mnist": "99.32 0.05 0.25 0.04 95.62 95.15",
        "imagenet2": "88.5 2.32 54.2 11.19 88.87 93.00",
        "cifar10": "77.28 0.17 28.77 2.80 78.57 72.98",
    }
    for dataset, text in copied.items():
        clean, spread, perturbed, wide, *noise = map(float, text.split())
        assert TABLE_1[dataset] == ((clean, spread), (perturbed, wide))
        assert TABLE_2[dataset] == tuple(noise)
    assert OURS["Table 1: MNIST"].reported == 0.0025
    assert OURS["Table 2: CIFAR-10"].reported == 0.7298
    assert OURS["Figure 10"].reported == 0.797


@pytest.mark.parametrize("dataset", DATASETS)
def test_table_1_is_judged_by_the_share_of_the_reported_drop(dataset):
    name = f"Table 1: {DATASETS[dataset]}"
    clean, perturbed = (number / 100 for number, _ in TABLE_1[dataset])
    drop = clean - perturbed
    assert verdict(name, record(attack(clean, perturbed))) == "reproduced"
    near = clean - 0.95 * drop
    assert verdict(name, record(attack(clean, near))) == "reproduced"
    assert verdict(name, record(attack(clean, clean - 0.6 * drop))) == "partly"
    assert verdict(name, record(attack(clean, clean - 0.4 * drop))) == "not"


def test_an_accuracy_below_chance_is_reproduced_by_one_below_chance_only():
    found = OURS["Table 1: MNIST"].judge(record(attack(0.999, 0.10), attack(0.999, 0.10)))
    assert found.verdict == "partly"
    found = OURS["Table 1: MNIST"].judge(record(attack(0.999, 0.05), attack(0.999, 0.09)))
    assert (found.verdict, found.n, found.interval) == ("reproduced", 2, (0.05, 0.09))
    assert found.measured == pytest.approx(0.07)


def test_the_accuracy_on_noise_counts_beyond_chance():
    right = "Table 2: ImageNet"
    assert verdict(right, record(attack(1, 0, noise=0.5 + 0.95 * 0.43))) == "reproduced"
    assert verdict(right, record(attack(1, 0, noise=0.5 + 0.6 * 0.43))) == "partly"
    assert verdict(right, record(attack(1, 0, noise=0.5 + 0.4 * 0.43))) == "not"


def test_the_gap_of_figure_8_is_that_of_the_last_epoch():
    found = OURS["Figure 8: MNIST"].judge(record(attack(1, 0.2, train=0.9)))
    assert found.measured == pytest.approx(0.7)
    assert found.verdict == "partly"


def components(spread, *, shown):
    """Three classes of points in the plane: training points apart, test points as ``shown``."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(50)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    train = centres[labels] + spread * torch.randn(150, 2, generator=generator)
    anywhere = torch.randint(3, labels.shape, generator=generator)
    places = {"apart": labels, "swapped": (labels + 1) % 3, "mixed": anywhere}
    shown = centres[places[shown]]
    return {
        "0.components.train": train,
        "0.components.train_labels": labels,
        "0.components.test": shown + torch.randn(150, 2, generator=generator),
        "0.components.test_labels": labels,
    }


def test_figure_3_needs_training_points_apart_and_test_points_mixed():
    name = "Figure 3: MNIST"
    assert verdict(name, record(arrays=components(1.0, shown="mixed"))) == "reproduced"
    assert verdict(name, record(arrays=components(1.0, shown="apart"))) == "not"
    assert verdict(name, record(arrays=components(500.0, shown="mixed"))) == "not"
    assert verdict(name, record()) is None


def test_figure_3_takes_swapped_classes_for_separated_ones():
    found = record(arrays=components(1.0, shown="swapped"))
    assert verdict("Figure 3: MNIST", found) == "not"
    assert OURS["Figure 3: MNIST"].judge(found).measured > 0.9


def sweep(accuracies):
    """Two runs for each epsilon, half a point apart, and their means."""
    trials, rows = [], []
    for epsilon, percent in accuracies.items():
        rows.append({"epsilon": epsilon, "mean": percent / 100})
        for seed, shift in ((0, -0.25), (1, 0.25)):
            accuracy = (percent + shift) / 100
            trials.append({"epsilon": epsilon, "accuracy": accuracy, "generator": 0, "seed": seed})
    return record(*trials, rows=rows)


PAPERS = {0.0: 99.0, 0.05: 98.5, 0.1: 98.0, 0.15: 97.5, 0.2: 68.2, 0.25: 4.7, 0.3: 0.1}


def test_figure_4_finds_the_last_harmless_bound():
    found = OURS["Figure 4"].judge(sweep(PAPERS))
    assert (found.verdict, found.measured, found.n) == ("reproduced", 0.15, 2)
    assert verdict("Figure 4", sweep({**PAPERS, 0.15: 80.0})) == "partly"
    assert verdict("Figure 4", sweep({**PAPERS, 0.3: 20.0})) == "partly"
    assert verdict("Figure 4", sweep({**PAPERS, 0.1: 80.0})) == "not"
    assert verdict("Figure 4", sweep({**PAPERS, 0.25: 70.0, 0.3: 60.0})) == "not"
    assert verdict("Figure 4", sweep({0.0: 99.0, 0.3: 0.1})) is None


def shares(noise, random):
    rows, trials = [], []
    for kind, epsilon, curve in (("noise", 0.3, noise), ("random labels", None, random)):
        for share, percent in curve.items():
            about = {"kind": kind, "epsilon": epsilon, "share": share}
            rows.append({**about, "mean": percent / 100})
            trials.append({**about, "accuracy": percent / 100})
    return record(*trials, rows=rows)


def test_figure_5_holds_the_noise_against_random_labels():
    random = {0.0: 99, 0.4: 98, 0.9: 87, 1.0: 10}
    assert verdict("Figure 5", shares({0.0: 99, 0.4: 98, 0.9: 67, 1.0: 1}, random)) == "reproduced"
    assert verdict("Figure 5", shares({0.0: 99, 0.4: 98, 0.9: 90, 1.0: 1}, random)) == "partly"
    assert verdict("Figure 5", shares({0.0: 99, 0.4: 98, 0.9: 67, 1.0: 30}, random)) == "partly"
    assert verdict("Figure 5", shares({0.0: 99, 0.4: 90, 0.9: 67, 1.0: 1}, random)) == "not"
    assert verdict("Figure 5", shares({0.0: 99, 0.4: 98, 0.9: 67, 1.0: 60}, random)) == "not"
    assert verdict("Figure 5", shares({0.0: 99, 1.0: 1}, random)) is None


def test_the_weakest_transfer_decides():
    def rows(**changed):
        found = {name: perturbed for name, (_, perturbed) in FIGURE_6.items()} | changed
        return record(
            rows=[
                {"classifier": name, "clean": FIGURE_6[name][0] / 100, "perturbed": value / 100}
                for name, value in found.items()
            ]
        )

    assert verdict("Figure 6", rows()) == "reproduced"
    assert verdict("Figure 6", rows(**{"random forest": 40.0})) == "partly"
    assert verdict("Figure 6", rows(**{"random forest": 40.0}, small=90.0)) == "not"
    assert verdict("Figure 6", record(rows=rows().metrics["rows"][:3])) is None


def test_the_codes_network_is_judged_as_the_texts_is():
    """By the same rule against the same numbers, from records of its own."""
    own = {name: found for name, found in OURS.items() if name.endswith(CODES_NETWORK)}
    assert len(own) == 8
    for name, found in own.items():
        text = OURS[name.removesuffix(CODES_NETWORK)]
        same = ("claim", "quantity", "unit", "reported", "rule")
        assert all(getattr(found, key) == getattr(text, key) for key in same)
        assert found.experiment != text.experiment
        code = EXPERIMENTS[found.experiment].configure(profile="paper")
        assert code.model == "released_two_layer_cnn"
        assert type(code) is EXPERIMENTS[text.experiment].config


def test_other_networks_are_held_against_the_mean_drop_of_the_papers():
    def found(perturbed):
        return record(rows=[{"classifier": "resnet8", "clean": 0.8, "perturbed": perturbed}])

    # In Figure 7 the accuracies on CIFAR-10 drop by 71.4 points on average.
    assert verdict("Figure 7: CIFAR-10", found(0.15)) == "reproduced"
    assert verdict("Figure 7: CIFAR-10", found(0.17)) == "partly"
    assert verdict("Figure 7: CIFAR-10", found(0.45)) == "not"
    # Every one counts, except the network that the noise was made with.
    several = found(0.05)
    several.metrics["rows"] += found(0.15).metrics["rows"]
    several.metrics["rows"][1]["classifier"] = "resnet14"
    several.metrics["rows"] += [{"classifier": "original", "clean": 0.8, "perturbed": 0.8}]
    judged = OURS["Figure 7: CIFAR-10"].judge(several)
    assert (judged.verdict, judged.n) == ("reproduced", 2)
    assert judged.measured == pytest.approx(0.10)
    assert judged.interval == pytest.approx((0.05, 0.15))
    several.metrics["rows"][1]["perturbed"] = 0.25
    assert verdict("Figure 7: CIFAR-10", several) == "partly"


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet2"])
def test_the_papers_own_numbers_reproduce_figure_7(dataset):
    def rows(**changed):
        values = {**FIGURE_7[dataset], **changed}
        return record(
            rows=[
                {"classifier": name, "clean": clean / 100, "perturbed": perturbed / 100}
                for name, (clean, perturbed) in values.items()
            ]
        )

    name = f"Figure 7: {DATASETS[dataset]}"
    assert verdict(name, rows()) == "reproduced"
    clean, perturbed = FIGURE_7[dataset]["resnet50"]
    assert verdict(name, rows(resnet50=(clean, perturbed + 0.2 * (clean - perturbed)))) == "partly"
    assert verdict(name, rows(resnet50=(clean, clean))) == "not"


def test_figure_10_counts_hits_of_the_label_map_only():
    trials = [
        {"kind": kind, "hit_rate": rate}
        for kind, rate in (("clean", 0.0), ("any wrong label", 0.1), ("label map", 0.75))
    ]
    found = OURS["Figure 10"].judge(record(*trials))
    assert (found.verdict, found.measured) == ("reproduced", 0.75)
    assert verdict("Figure 10", record({"kind": "label map", "hit_rate": 0.5})) == "partly"
    assert verdict("Figure 10", record({"kind": "label map", "hit_rate": 0.3})) == "not"
