"""Files and folders appear whole or not at all."""

import pytest

from poisonkit.errors import PoisonError
from poisonkit.files import whole_file, whole_folder


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "below" / "net.seed1"
    with whole_file(path) as partial:
        partial.write_text("weights")
        assert not path.exists()
    assert path.read_text() == "weights"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "net"
    path.write_text("old")

    def fail():
        with whole_file(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_whose_names_differ_behind_a_dot_are_written_in_places_of_their_own(tmp_path):
    first, second = (tmp_path / name for name in ("net.seed1", "net.seed2"))
    with whole_file(first) as one, whole_file(second) as other:
        one.write_text("1")
        other.write_text("2")
    assert [first.read_text(), second.read_text()] == ["1", "2"]


@pytest.mark.parametrize("empty", [False, True])
def test_a_folder_that_fails_is_as_it_was(empty, tmp_path):
    folder = tmp_path / "out"
    if empty:
        folder.mkdir()

    def fail():
        with whole_folder(folder) as partial:
            (partial / "0.png").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == (["out"] if empty else [])
    assert not (empty and names(folder))
    with whole_folder(folder) as partial:
        (partial / "0.png").write_text("whole")
        assert not folder.exists() or not names(folder)
    assert names(folder) == ["0.png"]


def test_what_a_killed_process_left_is_not_part_of_the_next_folder(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "old.png").write_text("left behind")
    with whole_folder(tmp_path / "out") as partial:
        (partial / "new.png").write_text("new")
    assert names(tmp_path / "out") == ["new.png"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(PoisonError, match="is not empty"), whole_folder(tmp_path):
        pass
    assert names(tmp_path) == ["thesis.tex"]
