"""Figures 2, 3 and 4: the crafting from step to step, and victims from epoch to epoch."""

from collections.abc import Sequence

from torch import Tensor

from poisonkit.experiments.metapoison.pairs import Data, Pair, begin, draw_pair
from poisonkit.experiments.metapoison.setting import (
    ROUNDED_VARIANTS,
    VARIANTS,
    MetaConfig,
    always_rounded,
    profiles_of,
)
from poisonkit.experiments.metapoison.steps import Poisons, crafted, kept_steps, train_victim
from poisonkit.experiments.metapoison.victims import (
    answers,
    attack,
    clean_row,
    outcome,
    row_of,
    rows_by,
    runs,
)
from poisonkit.experiments.networks import Context
from poisonkit.experiments.running import Experiment
from poisonkit.store import Json

#: Poisons that Figure 2 shows.
SHOWN = 8


def _steps(config: MetaConfig) -> list[Json]:
    return [
        {"step": number, **run} for number in range(len(kept_steps(config))) for run in runs(config)
    ]


def _step_check(config: MetaConfig, unit: Json, context: Context) -> object:
    always_rounded(config)
    return begin(config, unit["pair"], context)


def _step_trial(config: MetaConfig, unit: Json, context: Context) -> tuple[Json, dict[str, Tensor]]:
    """Train a victim on the poisons as they were before a crafting step, and a clean one."""
    data, pair, cost = begin(config, unit["pair"], context)
    poisons = crafted(config, data, pair, context, cost)
    poison = poisons.course[unit["step"]]
    images, _ = poison.apply(data.train, targets=pair.targets.x)
    network, course = train_victim(config, data, images, pair, unit["victim"], context, cost)
    clean, _ = train_victim(config, data, data.train, None, unit["victim"], context, cost)
    last = unit["step"] == len(poisons.course) - 1
    numbers: Json = {
        **unit,
        "crafted": kept_steps(config)[unit["step"]],
        **outcome(pair, network, course, data),
        "clean": answers(pair, clean, data),
        "poisons": len(pair.rows),
        "data_checksum": data.train.checksum,
        "cost": cost.as_json(),
    }
    if last and unit["victim"] == 0:
        numbers["unaffected"] = poisons.unaffected.tolist()
        numbers["unrolled"] = poisons.unrolled.tolist()
        numbers["largest_change"] = int(poison.verify(data.train).max())
        return numbers, _pictures(data, pair, poisons)
    return numbers, {}


def _pictures(data: Data, pair: Pair, poisons: Poisons) -> dict[str, Tensor]:
    """Return the first poisons of a pair after each kept step, what they were, and the target."""
    shown = list(pair.rows[:SHOWN])
    return {
        "pictures.target": pair.targets.x[:1],
        "pictures.bases": data.train.x[shown],
        **{
            f"pictures.poisons.{number}": poison.images[:SHOWN]
            for number, poison in enumerate(poisons.course)
        },
    }


def _step_summary(config: MetaConfig, trials: Sequence[Json]) -> Json:
    return {"rows": rows_by(trials, "crafted"), "by_pair": rows_by(trials, "crafted", "pair")}


CRAFTING = Experiment(
    name="metapoison/crafting",
    summary="Figures 2 and 3: the target's loss while crafting, and in victims of each step",
    version=2,
    config=MetaConfig,
    profiles=profiles_of(
        paper={"pairs": 1, "victims": 4},
        # A target that networks trained on clean images find somewhat like the wanted class.
        quick={"victims": 4, "target": 32, "kept_every": 5},
        small={"pairs": 1},
    ),
    variants=ROUNDED_VARIANTS,
    units=_steps,
    trial=_step_trial,
    check=_step_check,
    summarise=_step_summary,
)


# Figure 4 -----------------------------------------------------------------------------------


def _victims(config: MetaConfig) -> list[Json]:
    clean = [{"pair": None, "victim": victim} for victim in range(config.victims)]
    return [*runs(config), *clean]


def _victim_check(config: MetaConfig, unit: Json, context: Context) -> object:
    return begin(config, unit["pair"] or 0, context)


def _victim_trial(
    config: MetaConfig, unit: Json, context: Context
) -> tuple[Json, dict[str, Tensor]]:
    """Train a victim on a pair's poisons, or one on clean images beside all of them."""
    if unit["pair"] is not None:
        return attack(config, unit, context, beside_clean=False)
    data, _, cost = begin(config, 0, context)
    test = context.load(config.dataset, "test", image_size=config.image_size)
    pairs = {
        f"pair{number}_": draw_pair(config, data.train, test, number)
        for number in range(config.pairs)
    }
    _, course = train_victim(config, data, data.train, pairs, unit["victim"], context, cost)
    return {
        **unit,
        "course": {name: course[name] for name in course if name not in ("loss", "seconds")},
        "data_checksum": data.train.checksum,
        "cost": cost.as_json(),
    }, {}


def _victim_summary(config: MetaConfig, trials: Sequence[Json]) -> Json:
    poisoned = [trial for trial in trials if trial["pair"] is not None]
    clean = [trial for trial in trials if trial["pair"] is None]
    found: Json = {"all": row_of(poisoned), "rows": rows_by(poisoned, "pair")}
    for row in found["rows"]:
        # What clean victims call the same targets.
        targets = row["targets"] // row["victims"]
        shares = [trial["course"][f"pair{row['pair']}_success"][-1] for trial in clean]
        row |= clean_row(round(sum(shares) * targets), len(clean) * targets)
    anyway = (sum(row[f"clean_{name}"] for row in found["rows"]) for name in ("hits", "targets"))
    found["all"] |= clean_row(*anyway)
    accuracies = [trial["course"]["test"][-1] for trial in clean]
    found["clean_accuracy"] = sum(accuracies) / len(accuracies)
    return found


VICTIMS = Experiment(
    name="metapoison/victims",
    summary="Figure 4: target loss, success and accuracy while victims train, for several pairs",
    version=2,
    config=MetaConfig,
    profiles=profiles_of(quick={"pairs": 2}),
    variants=VARIANTS,
    units=_victims,
    trial=_victim_trial,
    check=_victim_check,
    summarise=_victim_summary,
)
