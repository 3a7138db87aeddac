"""A torchvision or torchaudio that does not fit torch is named before transformers breaks for it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("torchvision", "RuntimeError('operator torchvision::nms does not exist')"),
        ("torchaudio", "OSError('Could not load this library')"),
    ],
)
def test_a_companion_of_torch_that_does_not_fit_is_named(name, error, tmp_path):
    """As when torch is built for the CPU and it for CUDA."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(f"raise {error}")
    (tmp_path / f"{name}-9.9.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n"
    (tmp_path / f"{name}-9.9.dist-info" / "METADATA").write_text(metadata)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import bundle_mllm"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {name} 9.9 does not match torch 2.")
    assert f"which breaks transformers, too: install the {name} of the same release and the same build" in last


def test_the_development_set_up_lets_a_torchvision_for_cuda_be_imported(tmp_path):
    """Its Python part registers itself for an operator that only its compiled part declares."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "import torch\ntorch.library.register_fake('torchvision::nms')(lambda dets, scores, iou_threshold: dets)\n"
    )
    (tmp_path / "torchvision" / "_C.so").write_bytes(b"compiled for another torch")
    hook = Path(__file__).parents[1] / ".ci" / "torchvision_on_cpu.py"
    shutil.copy(hook, tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import torchvision_on_cpu; import torchvision"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
