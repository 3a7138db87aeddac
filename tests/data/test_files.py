"""A file or folder appears at once or not at all, also where two processes write it."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import bundle_mllm
from bundle_mllm.data import files as module
from bundle_mllm.data.files import atomic_path, locked_folder, new_folder, replaced_folder
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


KILLED_WRITER = """
import os, signal, sys, types
package = types.ModuleType("bundle_mllm")
package.__path__ = [sys.argv[1]]
sys.modules["bundle_mllm"] = package
from bundle_mllm.data.files import atomic_path, new_folder

with atomic_path(sys.argv[2] + "/file") as file, new_folder(sys.argv[2] + "/folder") as folder:
    file.write_text("half")
    (folder / "half.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def hidden(folder):
    return sorted(path.name.split(".")[1] for path in folder.glob(".*.tmp"))


def test_what_a_killed_process_left_is_deleted_by_the_next_but_not_what_a_living_one_writes(tmp_path):
    command = [sys.executable, "-c", KILLED_WRITER, str(Path(bundle_mllm.__file__).parent), str(tmp_path)]
    assert subprocess.run(command, timeout=600).returncode == -9
    assert hidden(tmp_path) == ["file", "folder"]
    (tmp_path / ".mine.tmp").write_text("a name that is not ours")
    module.delete_abandoned.cache_clear()
    with atomic_path(tmp_path / "living") as living:
        assert hidden(tmp_path) == ["living", "mine"]
        module.delete_abandoned.cache_clear()
        with new_folder(tmp_path / "folder") as folder:
            (folder / "whole.txt").write_text("whole")
        living.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "folder", "living"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["whole.txt"]


def test_a_temporary_folder_that_another_process_deletes_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    lock, deleted = module._lock, []

    def too_late(path):
        if not deleted:
            deleted.append(path)
            path.rmdir()
        return lock(path)

    monkeypatch.setattr(module, "_lock", too_late)
    with atomic_path(tmp_path / "file") as file:
        file.write_text("whole")
    assert deleted and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_where_folders_cannot_be_locked_what_is_left_is_deleted_after_a_day(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(9, "Bad file descriptor")  # as a folder on NFS

    monkeypatch.setattr("fcntl.flock", flock)
    for name in ("old", "young"):
        (tmp_path / f".{name}.0123456789ab.tmp").mkdir()
    yesterday = time.time() - 25 * 3600
    os.utime(tmp_path / ".old.0123456789ab.tmp", (yesterday, yesterday))
    module.delete_abandoned.cache_clear()
    with locked_folder(tmp_path / "out"), atomic_path(tmp_path / "file") as file:
        file.write_text("whole")
    assert hidden(tmp_path) == ["young"] and (tmp_path / "file").read_text() == "whole"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_modes_are_those_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "a.safetensors") as temporary:
            save_file({"a": torch.zeros(1)}, temporary)
        with new_folder(tmp_path / "folder") as folder:
            save_file({"a": torch.zeros(1)}, folder / "a.safetensors")
            (folder / "sub").mkdir()
            (folder / "sub" / "private.txt").touch(mode=0o600)
    finally:
        os.umask(before)
    for name in ("a.safetensors", "folder/a.safetensors", "folder/sub/private.txt"):
        path = tmp_path / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


def test_the_mode_of_a_hard_link_is_left_to_its_owner(tmp_path):
    (tmp_path / "private").touch(mode=0o600)
    with new_folder(tmp_path / "folder") as folder:
        os.link(tmp_path / "private", folder / "private")
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


TWO_WRITERS = """
import sys, time, types
from pathlib import Path
package = types.ModuleType("bundle_mllm")
package.__path__ = [sys.argv[1]]
sys.modules["bundle_mllm"] = package
from bundle_mllm.data import files as module
from bundle_mllm.data.files import atomic_path, locked_folder, new_folder, replaced_folder
from bundle_mllm.errors import BundleMLLMError

own, folder = sys.argv[2], Path(sys.argv[3])
try:
    with atomic_path(folder / "file") as file, new_folder(folder / "out") as out:
        for number in range(100):
            (out / f"{own}-{number}").write_text(own)
        (folder / f"{own}.ready").touch()
        while len(list(folder.glob("*.ready"))) < 2:  # both are writing now
            time.sleep(0.01)
        file.write_text(own * 10_000)
except BundleMLLMError as error:
    sys.exit(str(error))
"""


def test_of_two_processes_that_write_one_folder_one_wins_and_the_other_is_refused(tmp_path):
    command = [sys.executable, "-c", TWO_WRITERS, str(Path(bundle_mllm.__file__).parent)]
    running = [
        subprocess.Popen([*command, name, str(tmp_path)], stderr=subprocess.PIPE, text=True) for name in ("a", "b")
    ]
    errors = [process.communicate(timeout=600)[1] for process in running]
    assert sorted(process.returncode for process in running) == [0, 1]
    winner = "ab"[[process.returncode for process in running].index(0)]
    assert f"{tmp_path / 'out'} was written by another process meanwhile" in "".join(errors)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{winner}-{n}" for n in range(100))
    assert (tmp_path / "file").read_text() == winner * 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ready", "b.ready", "file", "out"]


def test_a_folder_is_created_in_place_of_an_empty_one_only(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as temporary:
        (temporary / "file.txt").write_text("")
    for path in (tmp_path / "empty", tmp_path / "empty" / "file.txt"):
        with pytest.raises(BundleMLLMError, match="give the name of a new folder"), new_folder(path):
            pass


@pytest.fixture(params=["linux", "other"])
def system(request, monkeypatch):
    """The systems that exchange two folders in one step, and those that rename."""
    monkeypatch.setattr(module.sys, "platform", request.param)


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("old")
    return folder


def test_a_folder_is_replaced_when_the_block_is_done(old, system):
    with replaced_folder(old) as temporary:
        (temporary / "new").write_text("new")
        assert [path.name for path in old.iterdir()] == ["old"]
    assert [path.name for path in old.iterdir()] == ["new"]
    assert list(old.parent.iterdir()) == [old]


def test_a_link_to_a_folder_stays_a_link(old, system):
    link = old.with_name("link")
    link.symlink_to(old.name)
    with replaced_folder(link) as temporary:
        (temporary / "new").touch()
    assert link.is_symlink() and [path.name for path in old.iterdir()] == ["new"]


def test_an_interrupted_replacement_keeps_the_old_folder(old):
    with pytest.raises(KeyboardInterrupt), replaced_folder(old) as temporary:
        (temporary / "new").touch()
        raise KeyboardInterrupt
    assert [path.name for path in old.iterdir()] == ["old"]
    assert list(old.parent.iterdir()) == [old]


def test_of_two_replacements_at_a_time_the_second_says_so(old, system):
    with pytest.raises(BundleMLLMError, match="changed by another process meanwhile"), replaced_folder(old) as slow:
        (slow / "slow").touch()
        with replaced_folder(old) as quick:
            (quick / "quick").touch()
    assert [path.name for path in old.iterdir()] == ["quick"]
    assert list(old.parent.iterdir()) == [old]


def test_a_folder_that_does_not_exist_is_not_replaced(tmp_path):
    with pytest.raises(BundleMLLMError, match="There is no folder"), replaced_folder(tmp_path / "none"):
        pass


def test_a_locked_folder_keeps_another_process_out_until_it_ends(tmp_path):
    code = TWO_WRITERS.split("own, folder")[0]
    code += "with locked_folder(sys.argv[2]):\n    print('mine', flush=True)\n    time.sleep(60)\n"
    command = [sys.executable, "-c", code, str(Path(bundle_mllm.__file__).parent), str(tmp_path / "out")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "mine\n"
    with pytest.raises(BundleMLLMError, match="is being written by another process"), locked_folder(tmp_path / "out"):
        pass
    other.kill()
    other.wait()
    with locked_folder(tmp_path / "out"):
        assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("write", [atomic_path, new_folder, locked_folder])
def test_a_path_that_leads_through_a_file_is_refused(tmp_path, write):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(BundleMLLMError, match="is not a folder"), write(tmp_path / "file" / "a" / "b"):
        pytest.fail("it was entered")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_file_in_place_of_a_folder_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(BundleMLLMError, match="is a folder"), atomic_path(tmp_path):
        pytest.fail("it was entered")
