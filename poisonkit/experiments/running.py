"""How any experiment is configured, cut into independent trials, run and recorded."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from poisonkit import provenance
from poisonkit.devices import choose_device, name_of, peak_memory_mib
from poisonkit.errors import PoisonkitError, unknown
from poisonkit.experiments.networks import Context
from poisonkit.experiments.settings import as_json, with_options
from poisonkit.store import Json, Record, Store, default_store

PROFILES = ("quick", "small", "paper")
#: How the names of those options of a record end that hold the checksum of its data.
CHECKSUM = "_checksum"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One family of exhibits.

    Its functions go to worker processes by name, so they are those of a module, or
    :func:`functools.partial` of such.

    Attributes
    ----------
    name : ``paper/family``.
    version : raised when the same configuration would give other numbers; records
        of older versions are then no longer found.
    config : frozen dataclass whose defaults are the paper's values; it has the
        fields ``profile``, ``variant`` and ``seed``.
    profiles : for each profile, the options in which it differs from the paper.
    variants : for each variant, likewise.
    units : the independent trials that a configuration consists of, as JSON values.
    trial : computes one of them: ``trial(config, unit, context)`` returns numbers
        and tensors. Among the numbers are ``data_checksum`` and ``cost`` (see
        :class:`~poisonkit.experiments.networks.Cost`), which go to the record's provenance.
    summarise : the record's metrics, from the configuration and the trials' numbers.
    check : raises what a trial would raise before its first training, see :func:`run`.
    """

    name: str
    summary: str
    version: int
    config: type
    profiles: Mapping[str, Mapping[str, object]]
    variants: Mapping[str, Mapping[str, object]]
    units: Callable[[Any], Sequence[Json]]
    trial: Callable[[Any, Json, Context], tuple[Json, dict[str, Tensor]]]
    summarise: Callable[[Any, Sequence[Json]], Json]
    check: Callable[[Any, Json, Context], object] | None = None

    def configure(
        self, /, *, profile: str = "paper", variant: str = "paper", **options: object
    ) -> Any:
        """Return the configuration of a profile and variant, with single options changed.

        Options that are None are left as profile and variant have them. Off the
        paper's scale a profile's own options stand against a variant's: its data
        have other classes, its network other layers.
        """
        if profile not in self.profiles:
            raise unknown("profile", profile, self.profiles)
        if variant not in self.variants:
            raise unknown("variant", variant, self.variants)
        config = self.config(profile=profile, variant=variant)
        scale, switches = self.profiles[profile], self.variants[variant]
        if profile != "paper":
            switches = {name: value for name, value in switches.items() if name not in scale}
        given = {name: value for name, value in options.items() if value is not None}
        for overlay in (scale, switches, given):
            config = with_options(config, overlay)
        return config


def run(
    experiment: Experiment,
    config: Any,
    *,
    store: Store | None = None,
    device: str = "auto",
    data_root: Path | None = None,
    executor: Executor | None = None,
    progress: bool = False,
    freeze: bool = False,
) -> Record:
    """Return an experiment's record, computing what of it does not exist yet.

    Parameters
    ----------
    executor : runs the independent trials; by default they run here, one by one.
    freeze : write the record into the checkout's ``results/`` instead of the cache.
    """
    store = store or default_store()
    if freeze and store.frozen is None:
        raise PoisonkitError("there is no checkout, so no results/ folder to freeze a record in")
    chosen = choose_device(device)
    context = Context(
        # With an executor, each worker looks for its device where it runs.
        store=store,
        device=device if executor else str(chosen),
        data_root=data_root,
        progress=progress and not executor,
    )
    settings = {**as_json(config), **_own_data(config, context)}
    found = store.find(experiment.name, experiment.version, settings)
    if found:
        return store.freeze(found) if freeze else found
    origin = provenance.describe()
    units = list(experiment.units(config))
    if not units:
        raise PoisonkitError(f"{experiment.name}: this configuration has no trials to run")
    if experiment.check:
        # A mistake that only the last trial would meet shall not cost all the others.
        for unit in units:
            experiment.check(config, unit, context)
        if executor and torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # what the checks took, the workers may need
    work = partial(_one_trial, experiment, config, settings, context)
    results = executor.map(work, units) if executor else map(work, units)
    described = f"{experiment.name} [{config.profile}]"
    bar = tqdm(results, total=len(units), desc=described, unit="trial", disable=not progress)
    trials: list[Json] = []
    arrays: dict[str, Tensor] = {}
    networks: dict[str, float] = {}
    machines: list[Json] = []
    seconds, checksums, commits = 0.0, set[str](), set[str]()
    for index, (metrics, tensors) in enumerate(bar):
        checksums.add(metrics.pop("data_checksum"))
        machines.append(metrics.pop("machine"))
        commits |= {*machines[-1]["commits"], *metrics["cost"]["commits"]}
        cost = metrics.pop("cost")["seconds"]
        seconds += cost.pop("")
        networks |= cost
        trials.append(metrics)
        arrays |= {f"{index}.{name}": tensor for name, tensor in tensors.items()}
    return store.save(
        experiment=experiment.name,
        version=experiment.version,
        config=settings,
        metrics={"trials": trials, **experiment.summarise(config, trials)},
        arrays=arrays,
        provenance={
            **origin,
            "device": ", ".join(sorted({str(machine["device"]) for machine in machines})),
            "commit": ", ".join(sorted(commits)),
            "threads": max(machine["threads"] for machine in machines),
            "seconds": round(seconds + sum(networks.values()), 1),
            "peak_memory_mib": max(machine["peak_memory_mib"] for machine in machines),
            "data_checksum": ",".join(sorted(checksums)),
        },
        freeze=freeze,
    )


def _one_trial(
    experiment: Experiment, config: Any, settings: Json, context: Context, unit: Json
) -> tuple[Json, dict[str, Tensor]]:
    """Look a finished trial up, or compute it; a trial's own steps are artefacts as well."""
    spec = {
        "experiment": experiment.name,
        "version": experiment.version,
        "config": settings,
        "unit": unit,
        "device": choose_device(context.device).type,
    }

    def compute(_: Path) -> tuple[Json, dict[str, Tensor]]:
        metrics, tensors = experiment.trial(config, unit, context)
        return {**metrics, "machine": _machine(context)}, tensors

    artefact = context.store.artefact("trials", spec, compute)
    metrics = dict(artefact.metrics)
    metrics["machine"] = {**metrics["machine"], "commits": [artefact.origin["commit"]]}
    return metrics, artefact.tensors


def _own_data(config: Any, context: Context) -> Json:
    """Return the checksums of data that their name does not determine, else nothing.

    They become part of the configuration, so that other images under the same path
    are another record.
    """
    if not getattr(config, "dataset", "").startswith(("folder:", "imagenet2")):
        return {}
    options = {"image_size": config.image_size}
    if config.dataset == "imagenet2" and hasattr(config, "classes"):
        options["classes"] = config.classes
    return {
        f"{split}{CHECKSUM}": context.load(config.dataset, split, **options).checksum
        for split in ("train", "test")
    }


def _machine(context: Context) -> Json:
    """What a trial was computed on; with an executor, not where the record is written."""
    device = choose_device(context.device)
    return {
        "device": name_of(device),
        "threads": torch.get_num_threads(),
        "peak_memory_mib": peak_memory_mib(device),
    }
