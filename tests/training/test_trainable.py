"""Which parameters train: exactly the named groups, and a save that loses none of them."""

import pytest
import torch

from bundle_mllm.data import DatasetFolder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.training.config import LoraSettings, default_run
from bundle_mllm.training.ranker import build_ranker
from bundle_mllm.training.run_data import RunData
from bundle_mllm.training.trainable import load_trainable, make_trainable, merge_lora, save_trainable


def build(tiny_data):
    run = default_run("scratch", data=tiny_data, output_dir=tiny_data / "out")
    return build_ranker(run, RunData(run, DatasetFolder.open(tiny_data)))[0]


@pytest.fixture
def model(tiny_data):
    return build(tiny_data)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("group", ["fusion", "projector", "separator"])
def test_a_group_trains_alone(model, group):
    make_trainable(model, [group], LoraSettings(), seed=0)
    assert trained(model) == {n for n, _ in model.named_parameters() if n.startswith(f"model.{group}.")} != set()


def test_backbone_means_layers_embeddings_and_head(model):
    make_trainable(model, ["backbone"], LoraSettings(), seed=0)
    names = trained(model)
    assert "lm_head.weight" in names
    assert "model.language_model.embed_tokens.weight" in names
    assert not any(name.startswith(("model.fusion", "model.projector", "model.separator")) for name in names)


def test_lora_adapts_query_and_value_of_the_backbone_only(model):
    adapted = make_trainable(model, ["lora"], LoraSettings(), seed=0)
    names = trained(adapted)
    assert len(names) == 2 * 2 * 3  # A and B of query and value in three layers
    assert all("language_model" in name and ("q_proj" in name or "v_proj" in name) for name in names)


def test_lora_may_adapt_the_upper_layers_alone_and_no_gradient_is_computed_below_them(model):
    adapted = make_trainable(model, ["lora"], LoraSettings(upper_layers=1), seed=0)
    names = trained(adapted)
    assert len(names) == 2 * 2 and all(".layers.2." in name for name in names)
    states = adapted(input_ids=torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in states] == [False, False, False, True]


def test_the_adapters_first_weights_depend_on_the_seed(tiny_data):
    states = []
    for seed in (0, 0, 1):
        adapted = make_trainable(build(tiny_data), ["lora"], LoraSettings(), seed=seed)
        states.append(torch.cat([p.flatten() for p in adapted.parameters() if p.requires_grad]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_saving_and_merging_lora_with_fusion_loses_nothing(model, tmp_path):
    adapted = make_trainable(model, ["lora", "fusion", "projector", "separator"], LoraSettings(), seed=0)
    ids = torch.tensor([[5, 6, 1 << 20, 7, (1 << 20) + 4]])
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    adapted.eval()
    before = adapted(input_ids=ids).logits
    save_trainable(adapted, tmp_path / "best.safetensors")
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    assert not torch.allclose(adapted(input_ids=ids).logits, before, atol=1e-3)
    load_trainable(adapted, tmp_path / "best.safetensors")
    merged = merge_lora(adapted)
    assert type(merged).__name__ == "BundleMLLMForCausalLM"
    assert not any("lora" in name or "modules_to_save" in name for name in merged.state_dict())
    assert torch.allclose(merged(input_ids=ids).logits, before, atol=1e-5)


def test_a_file_of_other_parameters_is_refused(model, tmp_path):
    make_trainable(model, ["fusion"], LoraSettings(), seed=0)
    save_trainable(model, tmp_path / "best.safetensors")
    make_trainable(model, ["projector"], LoraSettings(), seed=0)
    with pytest.raises(BundleMLLMError, match="does not hold the parameters"):
        load_trainable(model, tmp_path / "best.safetensors")


@pytest.mark.parametrize(
    ("groups", "targets", "message"),
    [
        (["everything"], None, "Unknown parameter groups"),
        (["lora", "backbone"], None, "both lora and backbone"),
        (["lora"], ("no_such_projection",), "LoRA has nothing to adapt"),
    ],
)
def test_a_choice_that_cannot_train_is_refused(model, groups, targets, message):
    with pytest.raises(BundleMLLMError, match=message):
        make_trainable(model, groups, LoraSettings(target_modules=targets), seed=0)
