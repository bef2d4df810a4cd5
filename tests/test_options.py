"""What is written down of a configuration stays the same when options are added to it."""

from dataclasses import asdict, dataclass, field, replace

from poisonkit.experiments import EXPERIMENTS
from poisonkit.experiments.settings import as_json, options_of, with_options
from poisonkit.options import added, written


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    later: str = added("own")


@dataclass(frozen=True, kw_only=True)
class Outer:
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = field(default_factory=Inner)
    clipped: bool = added(True)


def test_an_option_that_came_later_is_written_down_where_it_is_not_what_it_always_was():
    assert written(Outer()) == {"sizes": (1, 2), "inner": {"rate": 0.1}}
    changed = Outer(clipped=False, inner=Inner(later="first"))
    assert written(changed) == asdict(changed)
    assert as_json(changed)["sizes"] == [1, 2]


def test_it_is_an_option_like_any_other():
    assert list(options_of(Outer)) == ["sizes", "inner.rate", "inner.later", "clipped"]
    changed = with_options(Outer(), {"inner.later": "first", "clipped": "false"})
    assert changed == replace(Outer(), inner=Inner(later="first"), clipped=False)


def test_every_experiment_writes_down_all_that_was_changed():
    for experiment in EXPERIMENTS.values():
        for profile in experiment.profiles:
            for variant in experiment.variants:
                config = experiment.configure(profile=profile, variant=variant)
                again = with_options(experiment.config(), _flat(written(config)))
                assert again == config


def _flat(options, prefix=""):
    found = {}
    for name, value in options.items():
        nested = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return found
