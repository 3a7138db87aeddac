"""What `import bundle_mllm` loads and registers, and what it says of a torchvision that does not match torch."""

import inspect
import pydoc
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import bundle_mllm

pytestmark = pytest.mark.slow

PACKAGES = [
    "bundle_mllm",
    *(f"bundle_mllm.{name}" for name in ("baselines", "encoders", "importers", "modeling", "report")),
]
HEAVY = ("torch", "transformers", "torchvision", "trl", "peft", "datasets", "sklearn", "scipy", "matplotlib")

CHECK = """
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
config = type(AutoConfig.for_model("bundle_mllm"))
assert all(config in m for m in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, PROCESSOR_MAPPING, TOKENIZER_MAPPING))
PIPELINE_REGISTRY.check_task("bundle-completion")
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
assert "bundle_mllm" in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
"""


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


def test_the_package_loads_nothing_heavy():
    run = run_python(f"import sys, bundle_mllm; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize(
    "imports",
    [
        "import bundle_mllm; from transformers import AutoModelForCausalLM, AutoTokenizer, AutoProcessor",
        "import bundle_mllm; from transformers import pipeline; import peft",
        "from transformers import Trainer, pipeline; import bundle_mllm",
        "import bundle_mllm.modeling.base_bundle_mllm",
        "import bundle_mllm.modeling.items_bundle_mllm",
        "from bundle_mllm.evaluation.scoring import score_questions",
    ],
)
def test_transformers_knows_the_model_whatever_is_imported_first(imports):
    run = run_python(f"{imports}\n{CHECK}")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["BundleMLLMForCausalLM", "BundleMLLMProcessor", "BundleMLLMTokenizerFast"])
def test_the_code_of_a_class_travels_with_it_if_nothing_else_was_imported(name):
    run = run_python(f"import bundle_mllm; print(bundle_mllm.{name}._auto_class)")
    assert run.stdout.strip().startswith("Auto"), run.stderr


def test_help_is_one_screen_that_names_everything():
    text = pydoc.plain(pydoc.render_doc(bundle_mllm))
    shown = text[text.index("DESCRIPTION") : text.index("PACKAGE CONTENTS")]
    assert len(shown.splitlines()) <= 40 and len(text.splitlines()) <= 90
    named = re.findall(r"^        (?:\w+ +|  +)((?:\w+ ?)+)$", shown, flags=re.MULTILINE)
    assert {name for line in named for name in line.split()} == set(dir(bundle_mllm))


def test_every_path_of_the_public_api_may_be_a_text():
    """Functions of settings turn texts into paths (see `fit`); all others say that they take both."""
    functions = [getattr(bundle_mllm, name) for name in dir(bundle_mllm)]
    classes = [each for each in functions if inspect.isclass(each) and each.__module__.startswith("bundle_mllm")]
    functions += [member for each in classes for name, member in vars(each).items() if not name.startswith("_")]
    checked = 0
    for function in functions:
        function = getattr(function, "__func__", function)  # of a class method
        if inspect.isfunction(function) and not hasattr(function, "__wrapped__"):
            for parameter in inspect.signature(function).parameters.values():
                hint = str(parameter.annotation)
                checked += "Path" in hint
                assert "Path" not in hint or "str" in hint, (function, parameter)
    assert checked > 10


@pytest.mark.parametrize("package", PACKAGES)
def test_every_lazy_name_is_the_object_of_that_name(package):
    module = import_module(package)
    names = dir(module)
    assert names and all(getattr(getattr(module, name), "__name__", name) == name for name in names)
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(module, "no_such_name")  # noqa: B009


def test_a_torchvision_that_does_not_match_torch_is_named(tmp_path):
    """As when torch is built for the CPU and torchvision for CUDA."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    (tmp_path / "torchvision-9.9.dist-info").mkdir()
    (tmp_path / "torchvision-9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 9.9\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import bundle_mllm; bundle_mllm.BundleMLLMForCausalLM"
    run = run_python(code)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: torchvision 9.9 does not match torch 2.")
    assert "which breaks transformers, too: install the torchvision of the same release and the same build" in last


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
    run = run_python(code)
    assert run.returncode == 0, run.stderr
