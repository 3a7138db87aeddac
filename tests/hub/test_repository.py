"""The local copy of a repository: replaced as a whole or not at all, whatever happens in between."""

import pytest

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.repository import link_or_copy, write_repository


@pytest.fixture
def source(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "text.json").write_text("{}")
    return tmp_path / "out"


def publish(source, text, check=lambda folder: None, target=None, **options):
    target = target or source.with_name("out-hub")
    write_repository(target, source, lambda folder: (folder / "a.txt").write_text(text), check, **options)
    return target


def refuse(folder):
    raise BundleMLLMError(f"{folder / 'a.txt'} and {folder / 'b.txt'} in {folder} are bad.")


def names(source):
    return sorted(path.name for path in source.parent.iterdir())


def test_a_folder_that_is_refused_does_not_replace_the_old_one_and_the_source_is_named(source):
    target = publish(source, "old")
    with pytest.raises(BundleMLLMError) as caught:
        publish(source, "new", refuse, sources={"a.txt": source / "text.json"})
    assert str(caught.value) == f"{source / 'text.json'} and {source / 'b.txt'} in {source} are bad."
    assert (target / "a.txt").read_text() == "old" and names(source) == ["out", "out-hub"]


def test_what_a_killed_process_left_is_removed_by_the_next(source):
    left = source.parent / ".out-hub.0123456789ab.tmp"
    left.mkdir()
    (left / "half").touch()
    assert [path.name for path in publish(source, "new").glob("[!.]*")] == ["a.txt"]
    assert names(source) == ["out", "out-hub"]


def test_a_repository_within_its_source_is_refused(source):
    with pytest.raises(BundleMLLMError, match=r"lies in .*outside of it"):
        publish(source, "new", target=source / "hub")
    assert [path.name for path in source.iterdir()] == ["text.json"]


@pytest.mark.parametrize("is_written", [False, True])
def test_of_two_calls_at_a_time_one_writes_the_folder_and_the_other_is_an_error(source, is_written):
    if is_written:
        publish(source, "old")
    with pytest.raises(BundleMLLMError, match=r"by another process meanwhile"):
        publish(source, "late", check=lambda folder: publish(source, "early"))
    assert (source.parent / "out-hub" / "a.txt").read_text() == "early" and names(source) == ["out", "out-hub"]


def test_only_weights_are_linked(source, tmp_path):
    (source / "model.safetensors").write_bytes(b"weights")
    for name in ("model.safetensors", "text.json"):
        link_or_copy(source / name, tmp_path / "copy" / name)
    (tmp_path / "copy" / "text.json").write_text('{"changed": true}')
    assert (source / "text.json").read_text() == "{}"
    assert (source / "model.safetensors").samefile(tmp_path / "copy" / "model.safetensors")
