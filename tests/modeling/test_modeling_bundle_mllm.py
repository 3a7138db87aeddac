"""The ranker: items and separators are embeddings in front of a backbone that stays as it is."""

import logging
import re
import warnings

import pytest
import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from tiny_models import make_backbone, make_features, make_model
from torch.testing import assert_close
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging as transformers_logging

OFFSET, SEPARATOR = 1 << 20, 401
IDS = torch.tensor([[1, 60, SEPARATOR, OFFSET + 3, 61, SEPARATOR, OFFSET + 7, 62]])
TEXT = torch.tensor([[1, 60, 61, 62, 63]])
LETTERS = torch.tensor([40, 41, 42])


@pytest.fixture(scope="module")
def model():
    return make_model()


@torch.no_grad()
def logits(model, ids=IDS, **kwargs):
    return model(input_ids=ids, **kwargs).logits


def pad(ids, mask, left, right):
    zeros = (torch.zeros(1, left, dtype=torch.long), torch.zeros(1, right, dtype=torch.long))
    return torch.cat([zeros[0], ids, zeros[1]], 1), torch.cat([zeros[0], mask, zeros[1]], 1)


def test_text_gives_the_logits_of_the_backbone():
    backbone = make_backbone().eval()
    expected = backbone(input_ids=TEXT).logits
    assert_close(logits(make_model(backbone), TEXT), expected)


def test_the_backbone_is_taken_over_and_not_copied():
    backbone = make_backbone()
    model = make_model(backbone)
    assert model.model.language_model is backbone.model and model.lm_head is backbone.lm_head


def test_an_item_token_stands_for_its_embedding(model):
    with torch.no_grad():
        embeds = model.model.embed(IDS)
        items = model.get_item_embeddings(torch.tensor([7, 3]))
    assert_close(embeds[0, [6, 3]], items)
    assert_close(embeds[0, 2], model.model.separator.weight[0])
    assert_close(embeds[0, 1], model.get_input_embeddings().weight[60])
    assert_close(logits(model), model(inputs_embeds=embeds).logits)


def test_zeroing_the_features_changes_the_scores():
    model = make_model()
    before = logits(model)
    model.set_catalog({name: torch.zeros_like(matrix) for name, matrix in make_features().items()})
    assert (logits(model) - before).abs().max() > 1e-3


def test_marking_a_modality_absent_changes_the_scores(model):
    masked = make_model(present={"visual": torch.zeros(8, dtype=torch.bool)})
    assert (logits(masked) - logits(model)).abs().max() > 1e-3


def test_only_the_rows_of_the_question_are_read():
    model = make_model()
    ids = torch.tensor([[OFFSET + 3, 9, OFFSET + 3], [OFFSET + 1, OFFSET + 3, 9]])
    expected = logits(model, ids)
    for matrix in model.model.catalog.features.buffers():
        matrix[[0, 2, 4, 5, 6, 7]] = torch.nan
    assert_close(logits(model, ids), expected)


def test_a_text_question_does_not_touch_features():
    model = make_model()
    expected = logits(model, TEXT)
    for matrix in model.model.catalog.features.buffers():
        matrix.fill_(torch.nan)
    assert_close(logits(model, TEXT), expected)


def test_text_trains_lora_under_gradient_checkpointing_without_features():
    model = make_model()
    for matrix in model.model.catalog.features.buffers():
        matrix.fill_(torch.nan)
    model.gradient_checkpointing_enable()
    adapted = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM")).train()
    assert {name.split(".lora_")[0].split(".")[-1] for name, _ in adapted.named_parameters() if "lora_" in name} == {
        "q_proj",
        "v_proj",
    }
    adapted(input_ids=TEXT, labels=TEXT).loss.backward()
    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert any(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_gradients_reach_fusion_projector_and_separator():
    model = make_model(present={"visual": torch.arange(8) != 7, "user_item": torch.arange(8) != 7})
    labels = torch.full_like(IDS, -100)
    labels[0, -1] = IDS[0, -1]
    model(input_ids=IDS, labels=labels).loss.backward()
    parts = (model.model.fusion, model.model.projector, model.model.separator)
    untrained = [name for part in parts for name, p in part.named_parameters() if p.grad is None or not p.grad.any()]
    assert untrained == []


def test_the_loss_is_that_of_the_labelled_tokens(model):
    labels = torch.full_like(IDS, -100)
    labels[0, -1] = 62
    expected = -logits(model)[0, -2].log_softmax(-1)[62]
    assert_close(model(input_ids=IDS, labels=labels).loss, expected)


def test_left_and_right_padding_agree(model):
    plain = model.last_logits(IDS, torch.ones_like(IDS))
    for left, right in ((5, 0), (0, 5)):
        padded = model.last_logits(*pad(IDS, torch.ones_like(IDS), left, right))
        assert_close(padded, plain)


def test_a_batch_equals_its_single_questions(model):
    other = torch.tensor([[1, 77, SEPARATOR, OFFSET + 3, 78]])
    rows = [pad(IDS, torch.ones_like(IDS), 0, 0), pad(other, torch.ones_like(other), 3, 0)]
    together = model.last_logits(*(torch.cat(parts) for parts in zip(*rows, strict=True)))
    alone = [model.last_logits(ids, torch.ones_like(ids)) for ids in (IDS, other)]
    assert_close(together, torch.cat(alone))


def test_last_logits_are_the_logits_of_the_full_forward(model):
    expected = logits(model)[:, -1]
    assert_close(model.last_logits(IDS), expected)
    assert_close(model.last_logits(IDS, torch.ones_like(IDS)), expected)


def test_last_logits_honor_an_adapter_on_the_head():
    model = make_model()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)).eval()
    expected = adapted(input_ids=IDS).logits[:, -1, LETTERS]
    assert_close(model.last_logits(IDS)[:, LETTERS], expected)
    assert (expected - logits(make_model())[:, -1, LETTERS]).abs().max() > 1e-4


def test_extra_items_equal_the_same_items_in_the_catalog():
    features = make_features()
    present = {"visual": torch.arange(8) != 7}
    full = make_model(features=features, present=present)
    short = make_model(features={name: matrix[:6] for name, matrix in features.items()})
    extra = {
        "features": {name: matrix[6:] for name, matrix in features.items()},
        "present": torch.tensor([[True, True], [True, False]]),
    }
    assert_close(logits(short, extra_items=extra), logits(full))


def test_extra_items_serve_an_empty_catalog_and_leave_no_trace():
    features = make_features()
    full, empty = make_model(features=features), make_model(features=make_features(num_items=0))
    assert_close(logits(empty, extra_items={"features": features}), logits(full))
    with pytest.raises(ValueError, match="point past the catalog"):
        logits(empty)


def test_generation_with_a_cache_equals_the_full_forward(model):
    expected = IDS
    for _ in range(6):
        expected = torch.cat([expected, logits(model, expected)[:, -1:].argmax(-1)], 1)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(IDS, attention_mask=torch.ones_like(IDS), **options), expected)
    padded = model.generate(
        **dict(zip(("input_ids", "attention_mask"), pad(IDS, torch.ones_like(IDS), 4, 0), strict=True)), **options
    )
    assert torch.equal(padded[:, 4:], expected)


def test_generation_takes_extra_items(model):
    ids = torch.tensor([[1, 60, OFFSET + 8, 61]])
    vector = make_features()["visual"][:1]
    short = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    extra = {"features": {"visual": vector}}
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), extra_items=extra, **short)
    assert_close(generated.logits[0], logits(model, ids, extra_items=extra)[:, -1])


def test_beam_search_takes_extra_items(model):
    ids = torch.tensor([[1, 60, OFFSET + 8, 61]])
    features = make_features()
    options = {"max_new_tokens": 3, "do_sample": False, "num_beams": 2, "attention_mask": torch.ones_like(ids)}
    extra = {"features": {name: matrix[2:3] for name, matrix in features.items()}}
    same = torch.where(ids == OFFSET + 8, OFFSET + 2, ids)
    beams = model.generate(ids, extra_items=extra, **options)
    assert torch.equal(beams[:, 4:], model.generate(same, **options)[:, 4:])


def test_a_frozen_backbone_leaves_the_item_modules_trainable(tmp_path):
    make_model(freeze_backbone=True).save_pretrained(tmp_path)
    for model in (make_model(freeze_backbone=True), type(make_model()).from_pretrained(tmp_path)):
        trainable = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
        assert trainable == {"fusion", "projector", "separator"}


def test_initialization_is_that_of_the_official_code():
    model = make_model(
        modalities={"visual": 400, "user_item": 300},
        features=make_features(modalities={"visual": 400, "user_item": 300}),
    )
    fusion = model.model.fusion
    for layer in (fusion.encoders["visual"].linear_1, fusion.encoders["user_item"], fusion.query):
        expected = (2 / sum(layer.weight.shape)) ** 0.5  # Xavier
        assert abs(layer.weight.std().item() / expected - 1) < 0.05
        assert layer.bias is None or not layer.bias.any()
    bound = model.model.projector.linear_1.in_features**-0.5
    assert 0.9 * bound < model.model.projector.linear_1.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("ids", "extra", "message"),
    [
        ([OFFSET + 8, OFFSET + 7], None, r"1 item tokens point past the catalog \(row 8 of 8"),
        ([OFFSET + 9], {"features": {"visual": torch.ones(1, 12)}}, r"row 9 of 9: 8 in the catalog and 1 extra"),
        ([500], None, r"token id 500 is neither text \(below 420\)"),
        ([OFFSET + 8], {"features": {"visual": torch.ones(1, 5)}}, r"'visual' features of extra_items.*\[1, 5\]"),
        ([OFFSET + 8], {"features": {"acoustic": torch.ones(1, 5)}}, "extra_items has features of 'acoustic'"),
        (
            [OFFSET + 8],
            {"features": {"visual": torch.ones(1, 12)}, "present": torch.ones(1, 3)},
            r"extra_items\['present'\] has shape \[1, 3\]",
        ),
    ],
)
def test_an_id_without_an_embedding_is_an_error_with_both_numbers(model, ids, extra, message):
    with pytest.raises(ValueError, match=message):
        model(input_ids=torch.tensor([ids]), extra_items=extra)


def test_ids_and_embeddings_together_are_an_error(model):
    with pytest.raises(ValueError, match="exactly one"):
        model(input_ids=TEXT, inputs_embeds=torch.zeros(1, 5, 32))


def past(model, name, ids=IDS[:, :5]):
    """Run the first tokens; return what the next ones take as `name`."""
    with torch.no_grad():
        model(ids, **{name: (cache := DynamicCache(config=model.config.text_config))})
    return {name: cache}


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_forward_with_a_cache_of_either_name_equals_the_full_forward(model, name):
    assert_close(logits(model, IDS[:, 5:], **past(model, name)), logits(model)[:, 5:])
    base = model.model(IDS[:, 5:], **past(model, name)).last_hidden_state
    assert_close(model.lm_head(base), logits(model)[:, 5:])


def test_two_caches_are_an_error(model):
    with pytest.raises(ValueError, match="cache and past_key_values"):
        model(IDS[:, 5:], **past(model, "cache"), **past(model, "past_key_values"))


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_output_has_the_cache_under_the_name_of_this_transformers(model, use_cache):
    fields = CausalLMOutputWithPast.__dataclass_fields__
    name = "cache" if "cache" in fields else "past_key_values"
    output = model(IDS, use_cache=use_cache)
    assert (output[name].get_seq_length() == IDS.shape[1]) if use_cache else (output.get(name) is None)


def test_a_first_forward_and_a_generation_give_no_warning():
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    transformers_logging.warning_once.cache_clear()  # as in a new process
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = make_model()
            model(IDS, labels=IDS.clamp(max=100))
            model.last_logits(IDS, torch.ones_like(IDS))
            model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, do_sample=False)
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records] + [str(warning.message) for warning in caught] == []


def test_a_prefix_of_peft_is_read_before_the_prompt_and_trains():
    model = make_model()
    plain = logits(model)
    torch.manual_seed(0)
    adapted = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    assert adapted(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.shape == plain.shape
    assert not torch.allclose(adapted(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits, plain, atol=1e-3)
    labels = torch.full_like(IDS, -100)
    labels[0, -1] = 62
    adapted.train()(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=labels).loss.backward()
    gradients = [p.grad for p in adapted.parameters() if p.requires_grad]
    assert gradients and all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize(("config", "ids"), [(PrefixTuningConfig, IDS), (PromptTuningConfig, TEXT)])
def test_what_peft_puts_before_a_prompt_is_read_once_while_tokens_are_generated(config, ids):
    torch.manual_seed(0)
    adapted = get_peft_model(make_model(), config(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "output_logits": True}
    found = adapted.generate(input_ids=ids, max_new_tokens=4, return_dict_in_generate=True, **options)
    assert len(found.logits) == 4
    for step, scores in enumerate(found.logits):
        read = found.sequences[:, : ids.shape[1] + step]
        assert_close(scores, adapted(input_ids=read, attention_mask=torch.ones_like(read)).logits[:, -1])


def test_items_and_separators_among_the_labels_are_not_learned(model):
    text = IDS.masked_fill((IDS >= OFFSET) | (IDS == SEPARATOR), -100)
    expected = model(input_ids=IDS, labels=text).loss
    assert_close(model(input_ids=IDS, labels=IDS).loss, expected)
    shifted = torch.nn.functional.pad(IDS, (0, 1), value=-100)[:, 1:]
    assert_close(model(input_ids=IDS, labels=IDS, shift_labels=shifted).loss, expected)


def test_the_configuration_may_ask_for_hidden_states():
    model = make_model()
    assert model(input_ids=TEXT).hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(input_ids=TEXT).hidden_states) == 3
    assert model(input_ids=TEXT, output_hidden_states=False).hidden_states is None


def test_text_tokens_cannot_grow_into_the_items():
    model = make_model(item_token_offset=450)
    model.resize_token_embeddings(450)
    with pytest.raises(ValueError, match="cannot have 451 tokens, since ids from item_token_offset 450 on are items"):
        model.resize_token_embeddings(451)


def test_plans_of_parallel_runs_name_modules_that_there_are(model):
    names = {re.sub(r"\.\d+", ".*", name) for name, _ in model.named_modules()}
    assert model.tp_plan.keys() <= names and model.fsdp_plan.keys() <= names
    assert "lm_head" in model.tp_plan and "lm_head" in model.fsdp_plan


ADAPTERS = [AdaLoraConfig(total_step=10), BOFTConfig(boft_block_size=4), IA3Config(), LNTuningConfig(), LoHaConfig(),
            LoKrConfig(), OFTConfig(), VeraConfig()]  # fmt: skip


@pytest.mark.parametrize("config", ADAPTERS, ids=lambda config: config.peft_type.value)
def test_methods_of_peft_know_what_to_adapt(config):
    config.task_type = "CAUSAL_LM"
    adapted = get_peft_model(make_model(), config)
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained and all("language_model" in name for name in trained)


@pytest.mark.parametrize("config", [PromptTuningConfig, PromptEncoderConfig])
@pytest.mark.parametrize("ids", [IDS, torch.tensor([[1, SEPARATOR, 60]])])
def test_learned_prompts_before_items_are_refused_in_one_line_and_before_text_work(config, ids):
    adapted = get_peft_model(make_model(), config(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert adapted(input_ids=TEXT, attention_mask=torch.ones_like(TEXT)).logits.shape[1] == 2 + TEXT.shape[1]
    with pytest.raises(ValueError, match=r"text embedding was given item or separator tokens.*: use LoRA"):
        adapted(input_ids=ids, attention_mask=torch.ones_like(ids))
