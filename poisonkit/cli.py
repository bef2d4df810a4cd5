"""The command line: ``poisonkit list | run | verify | reproduce | scorecard | data``."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import typer

from poisonkit import __version__
from poisonkit.errors import PoisonkitError, look_up, unknown
from poisonkit.notebook import BookFailure
from poisonkit.workers import process_pool, usable_cores

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Reproducible research on training-data poisoning.",
)

Profile = Annotated[str, typer.Option(help="Scale: quick, small or paper.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:INDEX.")]
Root = Annotated[
    Path | None, typer.Option("--root", help="Folder with the data (default: POISONKIT_DATA).")
]


def main() -> None:
    """Run the command line; a user's mistake is told on stderr without a traceback.

    The exit code is then 2, or 1 if it was a notebook or a page that failed.
    """
    try:
        app(standalone_mode=True)
    except PoisonkitError as error:
        print(f"poisonkit: {error}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, BookFailure) else 2) from None
    except OSError as error:
        # A cache, a results folder or a disk that cannot be written to.
        print(f"poisonkit: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenExecutor:
        print(
            "poisonkit: a worker was killed, perhaps for want of memory; start the same command "
            "again, with fewer --workers, and it goes on from what was finished",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


@app.command("list")
def list_experiments(
    experiments: Annotated[
        list[str] | None, typer.Argument(help="Names or chapters; default: all.")
    ] = None,
    parameters: Annotated[bool, typer.Option(help="Also list every parameter.")] = False,
) -> None:
    """List experiments, their profiles and, if asked, their parameters with the paper's values."""
    from poisonkit.experiments import EXPERIMENTS
    from poisonkit.experiments.settings import describe, options_of

    found = list(EXPERIMENTS)
    if experiments:
        chapters = {name.split("/")[0]: None for name in EXPERIMENTS}
        for asked in experiments:
            look_up("experiment or chapter", asked, {**chapters, **EXPERIMENTS})
        found = [n for n in EXPERIMENTS if n in experiments or n.split("/")[0] in experiments]
    for experiment in map(EXPERIMENTS.__getitem__, found):
        print(f"{experiment.name}: {experiment.summary}")
        print(f"  profiles: {', '.join(experiment.profiles)}")
        print(f"  variants: {', '.join(experiment.variants)}")
        if parameters:
            paper, of = experiment.configure(), experiment.config
            print(f"  parameters (their meaning: help({of.__module__}.{of.__qualname__})):")
            for name, hint in options_of(of).items():
                print(f"    {name} = {attrgetter(name)(paper)!r}: {describe(hint)}")


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="Name, as shown by: poisonkit list")],
    profile: Profile = "quick",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one parameter, e.g. seed=1 or variant=released; repeatable.",
        ),
    ] = None,
    device: Device = "auto",
    root: Root = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the trials.")] = 1,
    freeze: Annotated[
        bool,
        typer.Option(help="Write into results/ of the checkout, unless the record is there."),
    ] = False,
) -> None:
    """Run one experiment, or find its record, and print where the record is."""
    from poisonkit.experiments import EXPERIMENTS
    from poisonkit.experiments import run as run_experiment

    chosen = look_up("experiment", experiment, EXPERIMENTS)
    config = chosen.configure(profile=profile, **_parse(settings or []))
    with _pool(workers) as executor:
        record = run_experiment(
            chosen,
            config,
            device=device,
            data_root=root,
            executor=executor,
            progress=True,
            freeze=freeze,
        )
    numbers = {key: value for key, value in record.metrics.items() if key != "trials"}
    print(json.dumps(numbers, indent=1))
    print(record.path)


def _parse(settings: list[str]) -> dict[str, Any]:
    pairs = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator:
            raise PoisonkitError(f"--set takes KEY=VALUE, not {setting!r}")
        pairs[name.strip()] = value.strip()
    if "profile" in pairs:
        raise PoisonkitError("give the profile with --profile, not with --set")
    return pairs


@contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    if workers == 1:
        yield None
        return
    with process_pool(workers) as executor:
        yield executor


@app.command()
def verify(
    experiment: Annotated[str, typer.Argument(help="Name, as shown by: poisonkit list")],
    profile: Annotated[str, typer.Option(help="Scale of the frozen record.")] = "small",
    device: Device = "auto",
    root: Root = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the trials.")] = 1,
) -> None:
    """Make a frozen record anew, and show what both say; the exit code is 1 if verdicts differ."""
    from poisonkit.verification import verify as make_anew

    with _pool(workers) as executor:
        found = make_anew(
            experiment,
            profile=profile,
            device=device,
            data_root=root,
            executor=executor,
            progress=True,
        )
    for name, record in (("frozen", found.frozen), ("made anew", found.made)):
        origin = record.provenance
        print(f"{name}: {record.path}, torch {origin['torch']}, {origin['device']}")
    if not found.same_images:
        print("They were made from different images.")
    for one, other in found.judgements:
        print(
            f"{one.exhibit}: frozen {one.show_measured()} {one.verdict}, "
            f"made anew {other.show_measured()} {other.verdict}"
        )
    if found.identical:
        print(f"All {found.numbers} numbers and all arrays are equal.")
    elif found.differing:
        print(f"{found.differing} of {found.numbers} numbers differ, or are in one alone.")
    else:
        print(f"All {found.numbers} numbers are equal; texts or arrays differ.")
    if not found.verdicts_agree:
        raise typer.Exit(1)


@app.command()
def reproduce(
    chapters: Annotated[
        list[str] | None,
        typer.Argument(help="Folders below notebooks/, e.g. spectral_signatures. Default: all."),
    ] = None,
    profile: Profile = "quick",
    build: Annotated[bool, typer.Option("--build", help="Also build the book.")] = False,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Compute anew what is not frozen, without the cache of earlier runs."
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Notebooks run at a time (default: at quick one a core, up to 4; else 1)."
        ),
    ] = None,
) -> None:
    """Execute the notebooks of some chapters at a profile; with --build, render the book."""
    from poisonkit import book
    from poisonkit.experiments import PROFILES

    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    start = time.perf_counter()
    if workers is None:
        # Each holds up to a GiB; at the other scales they would share one GPU, and more memory.
        workers = min(usable_cores(), 4) if profile == "quick" else 1
    root = book.find_root()
    parameters = {"profile": profile, "interactive": False}
    cache = tempfile.TemporaryDirectory(prefix="poisonkit-") if fresh else nullcontext()
    with cache as folder:
        book.use_cache(folder)
        if build:
            done = book.build(root, chapters=chapters or (), parameters=parameters, workers=workers)
        else:
            done = root / "_build" / "executed" / profile
            book.execute(
                root, done, chapters=chapters or (), parameters=parameters, workers=workers
            )
    print(f"{done}\n{(time.perf_counter() - start) / 60:.1f} minutes")


@app.command()
def scorecard(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object an exhibit.")] = False,
) -> None:
    """Show each exhibit's reported and measured value, and the verdict."""
    from poisonkit.scorecard import as_rows, judge_all

    judgements = judge_all()
    if as_json:
        for row in as_rows(judgements):
            print(json.dumps(row))
        return
    for judgement in judgements:
        print(
            f"{judgement.verdict:14} {judgement.paper} | {judgement.exhibit} | "
            f"reported {judgement.show_reported()} | measured {judgement.show_measured()} | "
            f"n = {judgement.n}, {judgement.profile or 'no record'}"
        )


@app.command()
def data(
    root: Root = None,
    download: Annotated[
        list[str] | None, typer.Option(help="Fetch mnist or cifar10; repeatable.")
    ] = None,
) -> None:
    """Show which data sets are there, where, and their checksums."""
    from poisonkit.data import IMAGENET2_CLASSES, data_root, load
    from poisonkit.experiments.deep_confuse.setting import SMALL

    print(f"data folder: {data_root(root)}")
    for name in download or []:
        if name not in ("mnist", "cifar10"):
            raise unknown("data set to fetch", name, ("mnist", "cifar10"))
        load(name, root=root, download=True)
    pairs = [IMAGENET2_CLASSES, SMALL["imagenet2"]["classes"]]
    listed: list[tuple[str, dict[str, Any]]] = [("digits", {}), ("mnist", {}), ("cifar10", {})]
    # Photographs have sizes of their own.
    listed += [("imagenet2", {"classes": pair, "image_size": 64}) for pair in pairs]
    for name, options in listed:
        for split in ("train", "test"):
            try:
                images = load(name, split=split, root=root, **options)
            except PoisonkitError as error:
                print(f"{name:10} {split:5} not read: {error}")
                break
            height, width = images.image_size
            shape = f"{len(images)} images, {images.channels} x {height} x {width}"
            classes = f"{images.classes} classes"
            if name == "imagenet2":
                classes = " and ".join(images.class_names)
            print(f"{name:10} {split:5} {shape}, {classes}, {images.checksum}")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(f"poisonkit {__version__}")
        raise typer.Exit


if __name__ == "__main__":
    main()
