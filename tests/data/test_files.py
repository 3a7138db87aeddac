import pytest

from bundle_mllm.data.files import atomic_path, new_folder
from bundle_mllm.errors import BundleMLLMError


def test_the_file_appears_only_when_the_block_is_done(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it"
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_block_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_only_when_the_block_is_done(tmp_path):
    path = tmp_path / "new" / "folder"
    with new_folder(path) as temporary:
        (temporary / "file.txt").write_text("all of it")
        assert not path.exists()
    assert (path / "file.txt").read_text() == "all of it"
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_block_leaves_no_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "folder") as temporary:
        (temporary / "file.txt").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_not_mixed_in(tmp_path):
    attempt = new_folder(tmp_path / "folder")
    (attempt.__enter__() / "old.txt").write_text("half")  # and no exit
    with new_folder(tmp_path / "folder") as temporary:
        (temporary / "new.txt").write_text("whole")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "new.txt"]


def test_a_folder_is_created_in_place_of_an_empty_one_only(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as temporary:
        (temporary / "file.txt").write_text("")
    for path in (tmp_path / "empty", tmp_path / "empty" / "file.txt"):
        with pytest.raises(BundleMLLMError, match="give the name of a new folder"), new_folder(path):
            pass
