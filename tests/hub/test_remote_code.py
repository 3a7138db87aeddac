"""A folder works in a process that has never seen the package: by the code that is saved with it, and saved again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import make_model, make_processor
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, pipeline

from bundle_mllm.model_folder import save_model
from bundle_mllm.modeling import BundleMLLMForCausalLM, BundleMLLMProcessor
from bundle_mllm.training.config import LoraSettings
from bundle_mllm.training.trainable import make_trainable

pytestmark = pytest.mark.slow

NEW = {"title": "teal cape", "features": {"visual": [0.3] * 12}}
QUESTIONS = [
    {"partial": ["i0", "i5"], "candidates": ["i2", "i3", "i7"]},
    {"partial": ["i1", NEW], "candidates": ["i2", {"title": "x", "features": {"user_item": [0.1] * 6}}, "i3"]},
]
CLASSES = ["Config", "ForCausalLM", "Model", "Processor", "TokenizerFast"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Save a folder and an adapter of it; answer with the installed package."""
    work, processor = tmp_path_factory.mktemp("remote"), make_processor(item_noun="garment")
    model = make_model(separator_token_id=processor.separator_token_id, standardize_features=True)
    save_model(model, processor, work / "folder")
    completer = pipeline("bundle-completion", model=str(work / "folder"))
    completions = completer(QUESTIONS)
    groups = ["lora", "fusion", "projector", "separator"]
    base = AutoModelForCausalLM.from_pretrained(work / "folder")
    adapted = make_trainable(base, groups, LoraSettings(), seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    inputs = [processor(question, return_tensors="pt") for question in QUESTIONS]
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        expected = {
            name: torch.stack([part(**one).logits[0, -1] for one in inputs])
            for name, part in (("logits", model), ("adapter_logits", adapted))
        }
    adapted.save_pretrained(work / "adapter")
    processor.save_pretrained(work / "adapter")
    expected |= {"input_ids": [one["input_ids"][0].tolist() for one in inputs], "completions": completions}
    return work, expected


@pytest.fixture(scope="module")
def found(installed):
    work = installed[0]
    (work / "questions.json").write_text(json.dumps(QUESTIONS))
    script = Path(__file__).parents[1] / "helpers" / "clean_process.py"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, str(script), str(work / "folder"), str(work / "adapter"), str(work)],
        env={**clean, "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf"), "HF_MODULES_CACHE": str(work / "modules")},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((work / "found.json").read_text())


def assert_same_completions(seen, expected):
    for options, expected_options in zip(seen, expected, strict=True):
        assert [{**option, "score": None} for option in options] == [{**o, "score": None} for o in expected_options]
        scores = [[option["score"] for option in both] for both in (options, expected_options)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize("saved", ["folder", "by_parts", "by_pipeline"])
def test_a_clean_process_answers_as_the_installed_package_does(installed, found, saved):
    expected, seen = installed[1], found[saved]
    assert [name.rpartition(".BundleMLLM")[-1] for name in seen["classes"][:-1]] == CLASSES
    assert seen["classes"][-1].endswith(".BundleCompletionPipeline")
    assert all(name.startswith("transformers_modules.") for name in seen["classes"])
    assert seen["input_ids"] == seen["tokenized"] == expected["input_ids"]
    for logits in ("logits", "base_logits"):
        assert torch.allclose(torch.tensor(seen[logits]), expected["logits"], rtol=0, atol=1e-5)
    assert_same_completions(seen["completions"], expected["completions"])
    assert_same_completions(seen["batched"], expected["completions"])


def test_the_clean_process_was_clean(found):
    assert found["imported"] == ["bundle_mllm", "transformers_modules"]  # the former is the None that blocks imports


@torch.no_grad()
@pytest.mark.parametrize("saved", ["by_parts", "by_pipeline"])
def test_what_a_clean_process_saved_is_whole_and_needs_no_trust_flag_here(installed, found, saved):
    work, expected = installed
    folder = work / saved
    assert {path.name for path in folder.iterdir()} == {path.name for path in (work / "folder").iterdir()}
    for name in ("processor_config.json", "tokenizer.json", "items.jsonl", *map(str, work.glob("folder/*.py"))):
        assert (folder / Path(name).name).read_text() == (work / "folder" / name).read_text()
    configs = [json.loads((work / name / "config.json").read_text()) for name in ("folder", saved)]
    for field in ("auto_map", "custom_pipelines", "architectures", "model_type"):
        assert configs[0][field] == configs[1][field]
    model, processor = AutoModelForCausalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(model) is BundleMLLMForCausalLM and type(processor) is BundleMLLMProcessor
    assert type(AutoModel.from_pretrained(folder)).__module__ == type(model).__module__
    assert type(AutoTokenizer.from_pretrained(folder)) is type(processor.tokenizer)
    logits = [model(**processor(question, return_tensors="pt")).logits[0, -1] for question in QUESTIONS]
    assert torch.allclose(torch.stack(logits), expected["logits"], rtol=0, atol=1e-5)
    assert_same_completions(pipeline("bundle-completion", model=str(folder))(QUESTIONS), expected["completions"])


def test_the_processors_folder_is_enough_to_write_questions(installed, found):
    assert found["processor_alone"] == installed[1]["input_ids"]
    assert type(AutoProcessor.from_pretrained(installed[0] / "processor")) is BundleMLLMProcessor


@torch.no_grad()
def test_an_adapter_folder_with_the_item_modules_loads_as_a_model_and_loses_nothing(installed, found):
    work, expected = installed
    assert not torch.allclose(expected["adapter_logits"], expected["logits"], atol=1e-2)
    adapted, processor = (auto.from_pretrained(work / "adapter") for auto in (AutoModelForCausalLM, AutoProcessor))
    logits = [adapted(**processor(question, return_tensors="pt")).logits[0, -1] for question in QUESTIONS]
    assert torch.allclose(torch.stack(logits), expected["adapter_logits"], rtol=0, atol=1e-5)
    assert torch.allclose(torch.tensor(found["adapter_logits"]), expected["adapter_logits"], rtol=0, atol=1e-5)
