"""The script that merges an adapter: whole folder or none, and one line for what was given wrongly."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import make_model, make_processor

from bundle_mllm.model_folder import load_ranker, save_model

SCRIPT = Path(__file__).parents[2] / "training_scripts" / "merge_adapter.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("merge_adapter", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def adapter(tmp_path):
    """An adapter whose B is not zero, so that merging changes the weights, beside its base model."""
    processor = make_processor()
    save_model(make_model(separator_token_id=processor.separator_token_id), processor, tmp_path / "base")
    model, _ = load_ranker(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def call(script, adapter, **options):
    arguments = {"adapter": adapter, "output-dir": adapter.parent / "merged", **options}
    return script.main([part for name, value in arguments.items() for part in (f"--{name}", str(value))])


def test_the_merged_folder_is_a_model_of_its_own(script, adapter):
    assert call(script, adapter) == 0
    before, after = (load_ranker(adapter.parent / name)[0].state_dict() for name in ("base", "merged"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("q_proj" in name for name in changed)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"cut"), "does not fit the base model"),
        (lambda folder: (folder.parent / "base").rename(folder.parent / "moved"), "There is no folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2_and_leaves_no_folder(script, adapter, capsys, spoil, message):
    spoil(adapter)
    assert call(script, adapter) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("merge_adapter: error: ") and message in error
    assert not {path.name for path in adapter.parent.iterdir()} - {"adapter", "base", "moved"}


def test_an_adapter_without_the_name_of_its_base_model_needs_it_given(script, adapter, capsys):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert call(script, adapter) == 2
    assert "give it with --model" in capsys.readouterr().err
    assert call(script, adapter, model=adapter.parent / "base") == 0


def test_a_folder_with_files_is_never_written_into(script, adapter, capsys):
    (adapter.parent / "merged").mkdir()
    (adapter.parent / "merged" / "thesis.txt").write_text("three years of work")
    assert call(script, adapter) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in (adapter.parent / "merged").iterdir()] == ["thesis.txt"]
