"""The modules that every command imports are light."""

import subprocess
import sys
from pathlib import Path

import pytest

import bundle_mllm

HEAVY = ("torch", "transformers", "pyarrow", "scipy", "safetensors", "numpy")
SCRIPT = """
import importlib, sys, types
package = types.ModuleType("bundle_mllm")  # not its __init__, which registers the model
package.__path__ = [sys.argv[1]]
sys.modules["bundle_mllm"] = package
importlib.import_module(sys.argv[2])
print(*(name for name in sys.argv[3:] if name in sys.modules))
"""


@pytest.mark.parametrize(
    "module", ["data", "data.files", "data.folder", "data.manifest", "data.questions", "data.tables"]
)
def test_reading_tables_and_questions_imports_nothing_heavy(module):
    command = [sys.executable, "-c", SCRIPT, str(Path(bundle_mllm.__file__).parent), f"bundle_mllm.{module}", *HEAVY]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []
