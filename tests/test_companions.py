"""A torchvision or torchaudio that does not fit torch is named before transformers breaks for it."""

import subprocess
import sys

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
