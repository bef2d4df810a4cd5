"""The command line: what it prints, where it writes, and how it refuses."""

import json
import re
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from PIL import Image

from poisonkit import __version__
from poisonkit.book import use_cache
from poisonkit.cli import main
from poisonkit.data import cache_root, data_root

TINY = ["--set", "trials=1", "--set", "recipe.epochs=1", "--device", "cpu"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POISONKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POISONKIT_DATA", str(tmp_path / "no data"))
    return tmp_path / "cache"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line as a user would, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["poisonkit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_lists_every_experiment_with_its_parameters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "list", "--parameters") == 0
    printed = capsys.readouterr().out
    for expected in ("spectral_signatures/removal", "quick, small, paper", "recipe.epochs"):
        assert expected in printed


def test_lists_one_experiment_or_a_chapter_with_the_papers_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "list", "metapoison/victims", "--parameters") == 0
    printed = capsys.readouterr().out
    assert printed.count("profiles:") == 1
    assert "recipe.epochs = 50: a whole number" in printed
    assert "help(poisonkit.experiments.metapoison.setting.MetaConfig)" in printed
    assert call(monkeypatch, "list", "convex_polytope", "metapoison/budget") == 0
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    names = [name for name in names if "/" in name]
    assert names[0] == "metapoison/budget"
    assert len(names) > 2
    assert all(name.startswith("convex_polytope/") for name in names[1:])
    assert call(monkeypatch, "list", "metapoison/victim") == 2
    assert "unknown experiment or chapter 'metapoison/victim'" in capsys.readouterr().err


def test_runs_an_experiment_once_and_then_finds_its_record(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "spectral_signatures/signature", "--profile", "quick", *TINY]
    assert call(monkeypatch, *command) == 0
    first = Path(capsys.readouterr().out.splitlines()[-1])
    assert first.is_relative_to(cache)
    content = first.read_bytes()
    assert call(monkeypatch, *command) == 0
    assert Path(capsys.readouterr().out.splitlines()[-1]) == first
    assert first.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "nonsense"], "spectral_signatures/removal"),
        (["run", "spectral_signatures/removal", "--profile", "huge"], "quick, small, paper"),
        (["run", "spectral_signatures/removal", "--set", "epoch=3"], "recipe.epochs"),
        (["run", "spectral_signatures/removal", "--set", "pattern=Y"], "pixel, X, L, random"),
        (["run", "spectral_signatures/removal", "--set", "trials"], "KEY=VALUE"),
        (["run", "spectral_signatures/removal", "--set", "tap=nowhere"], "block1"),
        (["run", "spectral_signatures/removal", "--set", "shares=(0.7,)"], "(0, 1/2)"),
        (["run", "spectral_signatures/removal", "--device", "abacus"], "cuda:INDEX"),
        (["run", "spectral_signatures/removal", "--profile", "small"], "poisonkit data --download"),
        (["reproduce", "nonsense"], "spectral_signatures"),
        (["reproduce", "--profile", "huge"], "quick, small, paper"),
        (["data", "--download", "imagenet"], "mnist, cifar10"),
    ],
)
def test_refuses_with_exit_code_2_and_names_what_would_work(
    arguments: list[str],
    named: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "small" in arguments:
        # Its record is frozen; another seed is not, and needs the data.
        arguments = [*arguments, "--set", "seed=12345"]
    assert call(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert "Traceback" not in captured.err
    assert not (cache / "records").exists()


def test_scorecard_prints_one_json_object_an_exhibit(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "scorecard", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"paper", "exhibit", "reported", "measured", "interval", "n", "verdict"} <= set(rows[0])
    assert call(monkeypatch, "scorecard") == 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_data_says_what_is_there_and_how_to_get_the_rest(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "data") == 0
    printed = capsys.readouterr().out
    assert "no data" in printed.splitlines()[0]
    assert re.search(r"digits +train 1433 images, 1 x 16 x 16, 10 classes, [0-9a-f]{64}", printed)
    assert "poisonkit data --download mnist" in printed


def test_data_finds_the_pair_of_either_profile_whatever_the_sizes_of_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("train/n02058221", "train/n01910747", "val/n02058221")):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (70 + number, 90)).save(tmp_path / name / "a.png")
    (tmp_path / "val/n01910747").mkdir()
    Image.new("RGB", (99, 80)).save(tmp_path / "val/n01910747/a.png")
    assert call(monkeypatch, "data", "--root", str(tmp_path)) == 0
    paper, *small = re.findall(r"imagenet2 .*", capsys.readouterr().out)
    assert "not read: " in paper
    assert "n01560419" in paper
    for line, split in zip(small, ("train", "test"), strict=True):
        assert f"{split:5} 2 images, 3 x 64 x 64, n02058221 and n01910747" in line


def test_an_unwritable_cache_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POISONKIT_CACHE", "/dev/null/cache")
    assert call(monkeypatch, "run", "spectral_signatures/removal", *TINY) == 2
    captured = capsys.readouterr()
    assert "/dev/null/cache" in captured.err
    assert "Traceback" not in captured.err


def test_records_need_neither_papermill_nor_jupyter(cache: Path) -> None:
    absent = "papermill jupyter_book nbformat nbclient ipywidgets IPython yaml platformdirs"
    script = (
        "import sys\n"
        f"for name in {absent.split()}:\n"
        "    sys.modules[name] = None\n"
        "from poisonkit.cli import main\n"
        f"sys.argv = ['poisonkit', 'run', 'spectral_signatures/signature', *{TINY}]\n"
        "main()\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert Path(finished.stdout.splitlines()[-1]).is_file()


def test_libraries_that_take_seconds_to_import_wait_until_they_are_needed() -> None:
    slow = {"torchvision", "timm", "sklearn", "scipy.stats", "matplotlib", "pandas", "papermill"}
    script = (
        "import sys\n"
        "from poisonkit.cli import main\n"
        "sys.argv = ['poisonkit', 'list']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    print(sorted({slow} & set(sys.modules)))\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "metapoison/crafting" in finished.stdout
    assert finished.stdout.splitlines()[-1] == "[]", finished.stderr


def test_says_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--version") == 0
    assert __version__ in capsys.readouterr().out


def test_a_worker_that_is_killed_is_a_sentence_about_going_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr("poisonkit.experiments.run", killed)
    assert call(monkeypatch, "run", "spectral_signatures/removal", *TINY) == 2
    captured = capsys.readouterr()
    assert "fewer --workers" in captured.err
    assert "Traceback" not in captured.err


def test_a_fresh_cache_leaves_the_data_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POISONKIT_DATA", raising=False)
    monkeypatch.setenv("POISONKIT_CACHE", str(tmp_path / "mine"))
    before = data_root()
    # So that what use_cache sets goes with the test.
    monkeypatch.setenv("POISONKIT_DATA", "")
    use_cache(tmp_path / "fresh")
    assert data_root() == before
    assert cache_root() == tmp_path / "fresh"
