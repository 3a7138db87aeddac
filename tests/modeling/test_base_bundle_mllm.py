"""Loading is strict: a checkpoint that holds other weights than the class is an error that names them."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_backbone, make_model, make_retriever

from bundle_mllm.modeling import BundleMLLMForCausalLM, BundleRetriever


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("make", "name"), [(make_model, "model.fusion.key.weight"), (make_retriever, "stacker.slope.weight")]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights, name: weights.pop(name), r"1 missing \({name}\)"),
        (lambda weights, name: weights.update(other=torch.ones(2)), r"1 unexpected \(other\)"),
        (lambda weights, name: weights.update({name: torch.ones(3, 5)}), r"1 of another shape \(.*{name}"),
    ],
    ids=["missing", "left over", "of another shape"],
)
def test_weights_that_differ_from_those_of_the_class_are_an_error(tmp_path, make, name, change, message):
    model = make()
    model.save_pretrained(tmp_path)
    change_weights(tmp_path, lambda weights: change(weights, name))
    with pytest.raises(ValueError, match=f"not those of this {type(model).__name__}: {message.format(name=name)}"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("make", [make_model, make_retriever])
def test_who_asks_for_the_list_of_weights_that_differ_gets_it_instead_of_an_error(tmp_path, make):
    model = make()
    model.save_pretrained(tmp_path)
    change_weights(tmp_path, lambda weights: weights.update(other=weights.pop(min(weights))))
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert (info["missing_keys"], info["unexpected_keys"]) == ({min(model.state_dict())}, {"other"})


def test_without_a_file_the_weights_are_those_that_are_given_and_the_others_begin_as_in_a_new_model():
    weights = {name: value for name, value in make_model().state_dict().items() if "projector" not in name}
    loaded = BundleMLLMForCausalLM.from_pretrained(None, config=make_model().config, state_dict=weights)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in weights.items())
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())


def test_a_stock_backbone_is_no_ranker_and_the_error_says_how_to_make_one(tmp_path):
    make_backbone().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not those of this BundleMLLMForCausalLM.*from_backbone"):
        BundleMLLMForCausalLM.from_pretrained(tmp_path, config=make_model().config)


def test_a_checkpoint_of_a_configuration_with_more_modules_is_an_error(tmp_path):
    make_model(fusion_value_map=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"1 unexpected \(model.fusion.value.weight\)"):
        BundleMLLMForCausalLM.from_pretrained(tmp_path, fusion_value_map=False)


@pytest.mark.parametrize("groups", [{}, {"textual": []}, None])
def test_a_retriever_with_any_memberships_loads_with_its_groups(tmp_path, groups):
    model = make_retriever(groups=groups)
    model.save_pretrained(tmp_path)
    loaded = BundleRetriever.from_pretrained(tmp_path)
    assert loaded.config.memberships == model.config.memberships
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
