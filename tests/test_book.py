"""The book's driver on tiny books: what it runs, what it refuses and what it leaves behind."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("papermill")

import fixture_book  # noqa: E402
from jupyter_client.provisioning import LocalProvisioner  # noqa: E402

from poisonkit import book, notebook, workers  # noqa: E402

CHECKOUT = Path(__file__).resolve().parent.parent

TOC = """
format: jb-book
root: book/intro
parts:
  - caption: One
    chapters:
      - file: notebooks/first/later
      - file: book/prose
        sections:
          - file: notebooks/first/earlier
      - file: notebooks/summary
"""


def write_notebook(path: Path, *sources: str, parameters: str | None = None) -> Path:
    cells = [nbformat.v4.new_markdown_cell("# A title")]
    if parameters is not None:
        cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", []))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "a checkout"  # a space, as in many home folders
    below = root / "notebooks"
    parameters = 'profile = "quick"  # the scale\nseed: int = 0\nname = "a=b"\n'
    write_notebook(below / "first/later.ipynb", "print(profile, seed, name)", parameters=parameters)
    write_notebook(below / "first/earlier.ipynb", "print(1)", parameters='profile = "quick"')
    write_notebook(below / "second/only.ipynb", "print(2)", parameters='profile = "quick"')
    write_notebook(below / "summary.ipynb", "print(3)")
    (root / "_toc.yml").write_text(TOC)
    (root / "_config.yml").write_text("title: tiny\n")
    return root


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def test_root_is_found_from_below(root: Path) -> None:
    assert book.find_root(root / "notebooks" / "first") == root


def test_notebooks_come_in_the_order_of_the_contents(root: Path) -> None:
    assert names(book.notebooks(root)) == ["later", "earlier", "only", "summary"]
    assert names(book.notebooks(root, ["first"])) == ["later", "earlier"]


def test_unknown_chapter_is_refused_with_the_known_ones(root: Path) -> None:
    with pytest.raises(book.BookError, match="no chapter thrid; there are: first, second"):
        book.notebooks(root, ["thrid"])


def test_unknown_parameter_is_refused_with_the_known_ones(root: Path, tmp_path: Path) -> None:
    with pytest.raises(book.BookError, match=r"no parameter sed; there are: .*profile, seed"):
        book.execute(
            root, tmp_path / "out", parameters={"sed": 1, "interactive": False}, progress=False
        )
    assert not (tmp_path / "out").exists()


def test_every_notebook_gets_the_parameters_it_declares(root: Path, tmp_path: Path) -> None:
    given = {"profile": "small", "seed": 7}
    executed = book.execute(root, tmp_path, parameters=given, progress=False)
    assert names(executed) == ["later", "earlier", "only", "summary"]
    assert printed(tmp_path / "notebooks/first/later.ipynb") == "small 7 a=b\n"
    assert printed(tmp_path / "notebooks/summary.ipynb") == "3\n"
    assert not list(tmp_path.rglob("*.unfinished.ipynb"))


def test_an_executed_notebook_keeps_one_folded_cell_of_the_values_used(
    root: Path, tmp_path: Path
) -> None:
    book.execute(root, tmp_path, chapters=["first"], parameters={"seed": 7}, progress=False)
    text = (tmp_path / "notebooks/first/later.ipynb").read_text()
    executed = nbformat.reads(text, as_version=4)
    first, *others = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert first.source == 'profile = "quick"  # the scale\nseed: int = 7\nname = "a=b"\n'
    assert set(first.metadata.tags) == {"parameters", "hide-input"}
    assert len(others) == 1
    assert executed.metadata.kernelspec.name == "python3"
    assert executed.metadata.papermill.parameters == {"seed": 7}
    assert str(root) not in text
    assert str(tmp_path) not in text


def test_writing_values_leaves_the_rest_of_the_source_alone() -> None:
    source = 'α = "é"; share = 0.1  # é\nlayers = [\n    "a",\n]\nkept = (1 +\n        2)\n'
    written = notebook.write_values(source, {"share": None, "layers": ["b", "c"]})
    assert written == "α = \"é\"; share = None  # é\nlayers = ['b', 'c']\nkept = (1 +\n        2)\n"


MEETING = """
import os, pathlib, time
place = pathlib.Path({place!r})
(place / {own!r}).touch()
limit = time.monotonic() + 120
while not (place / {other!r}).exists() and time.monotonic() < limit:
    time.sleep(0.05)
print((place / {other!r}).exists(), os.environ.get("OMP_NUM_THREADS"))
"""


def test_two_notebooks_run_at_a_time_and_share_the_cores(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(workers, "usable_cores", lambda: 6)
    for name, other in (("later", "earlier"), ("earlier", "later")):
        code = MEETING.format(place=str(tmp_path), own=name, other=other)
        write_notebook(root / f"notebooks/first/{name}.ipynb", code)
    out = tmp_path / "out"
    executed = book.execute(root, out, chapters=["first"], parameters={}, workers=2, progress=False)
    assert names(executed) == ["later", "earlier"]
    assert [printed(path) for path in executed] == ["True 3\n"] * 2


def test_a_failure_ends_the_notebook_beside_it_and_is_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))  # of the workers, too
    monkeypatch.setattr(tempfile, "tempdir", None)
    write_notebook(root / "notebooks/first/later.ipynb", "1 / 0")
    write_notebook(root / "notebooks/first/earlier.ipynb", "import time; time.sleep(90)")
    with pytest.raises(book.BookFailure, match=r"later.ipynb failed: ZeroDivisionError"):
        book.execute(root, tmp_path, parameters={}, workers=2, progress=False)
    assert not (tmp_path / "notebooks/first/earlier.ipynb").exists()
    assert not list(temporary.iterdir())


def test_a_failed_notebook_stops_with_its_name_and_last_error(root: Path, tmp_path: Path) -> None:
    path = write_notebook(root / "notebooks/first/later.ipynb", "print('so far')", "1 / 0")
    with pytest.raises(book.BookError) as caught:
        book.execute(root, tmp_path, parameters={}, progress=False)
    told = str(caught.value)
    assert "notebooks/first/later.ipynb failed: ZeroDivisionError: division by zero" in told
    unfinished = tmp_path / "notebooks/first/later.unfinished.ipynb"
    assert str(unfinished) in told
    assert notebook.has_error(unfinished)
    assert not (tmp_path / path.relative_to(root)).exists()
    assert not (tmp_path / "notebooks/first/earlier.ipynb").exists()


def test_a_kernel_that_dies_stops_with_the_name_of_its_notebook(root: Path, tmp_path: Path) -> None:
    write_notebook(root / "notebooks/first/later.ipynb", "import os; os._exit(1)")
    with pytest.raises(book.BookError, match=r"later.ipynb failed: .*[Kk]ernel died"):
        book.execute(root, tmp_path, chapters=["first"], parameters={}, progress=False)


def test_notebooks_run_in_their_own_folder_with_inline_figures_and_no_warnings(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("POISONKIT_DATA", "data")
    code = (
        "import os, pathlib; print(pathlib.Path.cwd().name, *os.listdir())\n"
        "print(os.environ['MPLBACKEND'].split('.')[-1], os.environ['POISONKIT_DATA'])"
    )
    write_notebook(root / "notebooks/second/only.ipynb", code)
    book.execute(root, tmp_path / "out", chapters=["second"], parameters={}, progress=False)
    told = printed(tmp_path / "out/notebooks/second/only.ipynb")
    assert told == f"second only.ipynb\nbackend_inline {tmp_path / 'data'}\n"
    assert capfd.readouterr() == ("", "")


def test_a_kernel_that_is_done_is_not_interrupted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine it still tidies up then, and would report the interrupt as an error."""
    sent: list[int] = []
    send = LocalProvisioner.send_signal

    async def watched(self: LocalProvisioner, signum: int) -> None:
        sent.append(signum)
        await send(self, signum)

    monkeypatch.setattr(LocalProvisioner, "send_signal", watched)
    write_notebook(root / "notebooks/second/only.ipynb", "print('done')")
    (path,) = book.execute(root, tmp_path, chapters=["second"], parameters={}, progress=False)
    assert printed(path) == "done\n"
    assert signal.SIGINT not in sent


def test_the_progress_bar_ends_at_its_total(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book.execute(root, tmp_path, chapters=["first"], parameters={"profile": "small"})
    assert "cell 4 of 4" in capsys.readouterr().err


def test_widgets_that_need_a_kernel_are_not_kept(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("ipywidgets")
    code = "import ipywidgets; display(ipywidgets.IntSlider()); print('after')"
    write_notebook(root / "notebooks/second/only.ipynb", code)
    (path,) = book.execute(root, tmp_path, chapters=["second"], parameters={}, progress=False)
    assert printed(path) == "after\n"
    assert "widget" not in nbformat.read(path, as_version=4).metadata


def test_a_cut_short_notebook_file_is_named(root: Path) -> None:
    path = root / "notebooks/first/later.ipynb"
    path.write_text(path.read_text()[:50])
    with pytest.raises(book.BookError, match=r"later.ipynb: not a notebook"):
        book.declared_parameters(path)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "papermill", None)
    with pytest.raises(book.BookError, match=r'pip install -e "\.\[book\]"'):
        notebook.load("papermill")


def test_records_need_none_of_the_extra() -> None:
    code = (
        "import sys, poisonkit.book\n"
        "print({'jupyter_book', 'nbformat', 'papermill', 'yaml'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


def test_a_narrowed_build_shows_the_other_notebooks_as_it_finds_them(tmp_path: Path) -> None:
    fixture_book.write(tmp_path, checkout=CHECKOUT)
    write_notebook(tmp_path / "notebooks/other/second.ipynb", "print(6 * 7)")
    with (tmp_path / "_toc.yml").open("a") as contents:
        contents.write("      - file: notebooks/other/second\n")
    figures = tmp_path / "_build/html/notebooks/chapter/figures.html"
    second = tmp_path / "_build/html/notebooks/other/second.html"

    def build(chapter: str) -> None:
        book.build(tmp_path, chapters=[chapter], parameters={}, progress=False, log=str)

    build("other")
    assert "was not run in this build" in figures.read_text()
    assert "42" in second.read_text()
    build("chapter")
    assert "was not run in this build" not in figures.read_text()
    assert "42" in second.read_text()


def test_a_warning_while_rendering_stops_the_build_and_is_shown(tmp_path: Path) -> None:
    fixture_book.write(tmp_path, checkout=CHECKOUT)
    (tmp_path / "book/theory.md").write_text("# Theory\n\n## The score\n\n{cite}`nobody1999`\n")
    with pytest.raises(book.BookError, match=r"theory.md:5: WARNING: .*nobody1999"):
        book.build(tmp_path, parameters={}, progress=False, log=str)
