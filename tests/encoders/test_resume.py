"""An encoding that is killed, or shared among processes or machines, ends with the bytes of one that is left alone."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from slow_encoder import SlowEncoder

from bundle_mllm.data import write_records
from bundle_mllm.data.files import locked_folder
from bundle_mllm.encoders import encode_folder
from bundle_mllm.encoders.batches import Rows
from bundle_mllm.encoders.shards import SHARD_BATCHES
from bundle_mllm.errors import BundleMLLMError

pytestmark = pytest.mark.slow

SHARD = SHARD_BATCHES * SlowEncoder.batch_size


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """60 pictures, of which some are missing or broken and some items have none: 5 shards."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = random.Random(0)
    records = []
    for row in range(65):
        Image.new("RGB", (8, 8), tuple(rng.randrange(256) for _ in range(3))).save(folder / f"{row}.png")
        records.append({"item_id": str(row), "image": None if row % 13 == 5 else f"{row}.png"})
    (folder / "7.png").unlink()
    (folder / "30.png").write_bytes(b"broken")
    write_records(folder / "items.jsonl", records)
    write_records(folder / "bundles.jsonl", [{"bundle_id": "b", "items": ["0", "1"], "split": "train"}])
    return folder


@pytest.fixture
def copies(pictures, tmp_path):
    """The folder encoded in one go, and a fresh copy of it."""
    for name in ("whole", "again"):
        shutil.copytree(pictures, tmp_path / name)
    encode_folder(tmp_path / "whole", visual=SlowEncoder())
    return tmp_path / "whole", tmp_path / "again"


def files(folder: Path) -> dict[str, bytes]:
    features = folder / "features"
    paths = [path for path in features.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    return {str(path.relative_to(features)): path.read_bytes() for path in paths}


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "features" / ".partial").glob("visual-*/[0-9]*.safetensors"))


def _encode_alone(folder, pause, workers):
    encode_folder(folder, visual=SlowEncoder(pause), workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(copies, workers):
    """SIGKILL it each time it has finished another shard, a random moment later; then let it end."""
    whole, again = copies
    delay = random.Random(workers)
    context = multiprocessing.get_context("forkserver")  # imports once, and forks before any thread is there
    context.set_forkserver_preload(["bundle_mllm.encoders.encode"])
    kills = 0
    for wanted in (1, 2, 4):
        child = context.Process(target=_encode_alone, args=(again, 0.05, workers))
        child.start()
        deadline = time.monotonic() + 600
        while len(shards(again)) < wanted and child.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delay.uniform(0, 0.1))
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        assert shards(again)
        assert not (again / "features" / "visual.safetensors").exists()
    assert kills == 3
    child = context.Process(target=_encode_alone, args=(again, 0.0, workers))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert files(again) == files(whole)
    assert set(files(again)) == {"visual.safetensors", ".sources/visual.safetensors", "manifest.json"}


class KilledError(Exception):
    pass


def interrupt(folder, batches, encoder=None):
    """Stop after some batches, as a kill between two of them would."""
    calls = []

    def count(*call):
        calls.append(call)
        if len(calls) == batches:
            raise KilledError

    with pytest.raises(KilledError):
        encode_folder(folder, visual=encoder or SlowEncoder(), progress=count)


def test_what_is_done_is_not_done_again_unless_its_files_have_changed(copies):
    whole, again = copies
    interrupt(again, batches=3 * SHARD_BATCHES)  # two shards are saved, the third is not
    assert len(shards(again)) == 2
    calls = []
    shutil.copy(again / "1.png", again / "0.png")  # in the first shard
    shutil.copy(whole / "1.png", whole / "0.png")
    shutil.rmtree(whole / "features")
    encode_folder(again, visual=SlowEncoder(), progress=lambda *call: calls.append(call))
    encode_folder(whole, visual=SlowEncoder())
    assert calls[0] == ("visual", SHARD + 5 + 3, 65)  # the second shard, and 5 items without a picture
    assert calls[-1] == ("visual", 65, 65)
    assert files(again) == files(whole)


def test_a_damaged_part_is_done_again(copies):
    whole, again = copies
    interrupt(again, batches=3 * SHARD_BATCHES)
    shards(again)[0].write_bytes(b"half of it")
    encode_folder(again, visual=SlowEncoder())
    assert files(again) == files(whole)


def test_parts_of_another_encoder_or_batch_size_are_not_mixed_in(copies):
    whole, again = copies
    other = SlowEncoder()
    other.name = "slow-2"
    interrupt(again, batches=3 * SHARD_BATCHES, encoder=other)
    encode_folder(again, visual=SlowEncoder())
    assert files(again) == files(whole)


def test_features_that_another_process_encodes_are_left_to_it(copies):
    whole, again = copies
    with locked_folder(again / "features"), pytest.raises(BundleMLLMError, match=r"features is being written by"):
        encode_folder(again, visual=SlowEncoder())
    assert not files(again)
    encode_folder(again, visual=SlowEncoder())
    assert files(again) == files(whole)


def script(folder, *, pause=0.0, workers=0):
    return [str(Path(__file__).parents[1] / "helpers" / "slow_encoder.py"), str(folder), str(pause), str(workers)]


def test_accelerate_launch_shares_the_work_with_no_change(copies):
    whole, again = copies
    options = {"num_processes": 2, "num_machines": 1, "main_process_port": 0, "mixed_precision": "no"}
    options = [f"--{name}={value}" for name, value in {**options, "dynamo_backend": "no"}.items()]
    run = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *options, *script(again)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert files(again) == files(whole)
    lines = sorted(line for line in run.stdout.splitlines() if line[:2] in ("0 ", "1 "))
    assert lines[0].startswith("0 {'visual': 'visual: 58 of 65 items, 6 wide (slow-1)")
    assert lines[1] == "1 {}"  # the other process did a share and returns no summary


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_shares_the_work_with_no_change(copies):
    import ray

    whole, again = copies
    here = str(Path(__file__).parents[1] / "helpers")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": here + os.pathsep + os.environ.get("PYTHONPATH", "")}},
    )
    try:
        interrupt(again, batches=3 * SHARD_BATCHES)  # what was begun here may be finished there
        summary = encode_folder(again, visual=SlowEncoder(), engine="ray")["visual"]
    finally:
        ray.shutdown()
    assert summary.num_present == 58
    assert files(again) == files(whole)


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_extra_to_install_is_named(copies):
    with pytest.raises(Exception, match=r'needs Ray: pip install "bundle-mllm\[ray\]"'):
        encode_folder(copies[1], visual=SlowEncoder(), engine="ray")


@torch.inference_mode()
def test_a_vector_of_nan_is_a_problem_of_its_item_alone():
    rows = Rows(torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]), torch.tensor([True, True]), torch.zeros(2, 32), ())
    features = rows.features
    with torch.inference_mode(False):
        result = rows.to_host()
    assert result.features.tolist() == [[1.0, 2.0], [0.0, 0.0]] and result.present.tolist() == [True, False]
    assert result.issues == ((1, "described by NaN or infinity", False),)
    assert features[1, 0].isnan()


def test_a_kill_before_the_digests_of_sources_are_written_loses_none(copies, monkeypatch):
    whole, again = copies
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("bundle_mllm.encoders.encode.save_digests", _interrupted)
        encode_folder(again, visual=SlowEncoder())
    assert (again / "features" / "visual.safetensors").exists() and files(again) != files(whole)
    encode_folder(again, visual=SlowEncoder())
    assert files(again) == files(whole)
    assert encode_folder(again, visual=SlowEncoder())["visual"].up_to_date


def _interrupted(*_):
    raise KeyboardInterrupt
