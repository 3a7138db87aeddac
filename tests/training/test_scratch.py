"""The backbone that needs no download: its tokenizer, its determinism, and that its layers can read a question."""

import importlib.util
import random
import string
from pathlib import Path

import pytest
import torch

from bundle_mllm.data import ItemCatalog, Question
from bundle_mllm.evaluation.metrics import compute_metrics
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.modeling import BundleMLLMForCausalLM
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.training.scratch import scratch_backbone, scratch_processor, structure_texts, train_tokenizer

WORDS = ["".join(letters) for letters in zip("bdfgklmnprst" * 4, "aeiou" * 10, "lmnrstbdgk" * 5, strict=False)]


@pytest.fixture(scope="module")
def catalog():
    rng = random.Random(0)
    titles = [" ".join(rng.sample(WORDS, 2)) for _ in range(200)]
    return ItemCatalog.from_records([{"item_id": f"i{n}", "title": title} for n, title in enumerate(titles)])


def test_letters_numbers_and_wording_are_whole_tokens_whatever_the_titles_are():
    for titles in (["a"], ["1. A 2. B"] * 50, [f"{a}{b}" for a in string.ascii_letters for b in string.digits]):
        tokenizer = train_tokenizer(titles)
        for text in structure_texts():
            tokens = [t for t in tokenizer.tokenize(text) if t != "Ġa"]
            assert len(tokens) <= len(text.split()) + text.count("\n") + text.count(".") + text.count(":") + 1


def test_any_text_survives_the_tokenizer(catalog):
    tokenizer = train_tokenizer(catalog.titles)
    text = "Größe 42 – 東京 ☕ <b>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_same_seed_gives_the_same_backbone(catalog):
    first, again, other = (scratch_backbone(catalog.titles, seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    differ = {name for name in first if not torch.equal(first[name], other[name])}
    assert differ == {"model.embed_tokens.weight"}


def test_building_a_backbone_leaves_the_global_random_state_alone(catalog):
    before = torch.get_rng_state()
    scratch_backbone(catalog.titles, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_the_untrained_backbone_finds_the_option_that_repeats_a_word(catalog):
    """What the shipped layers have learned: words they never saw, which differ by their random embeddings alone."""
    rng = random.Random(1)
    backbone, _, _ = scratch_backbone(catalog.titles, seed=0)
    processor = scratch_processor(catalog)
    processor.show_items = False
    model = BundleMLLMForCausalLM.from_backbone(backbone, separator_token_id=processor.separator_token_id)
    words = [set(title.split()) for title in catalog.titles]
    drawn = []
    while len(drawn) < 120:
        shown, answer = rng.sample(range(len(words)), 2)
        wrong = [row for row in rng.sample(range(len(words)), 20) if not words[row] & words[shown]][:3]
        if len(words[shown] & words[answer]) != 1 or answer in wrong:
            continue
        options = [*wrong, answer]
        rng.shuffle(options)
        drawn.append((shown, options, options.index(answer)))
    questions = [
        Question(str(n), str(n), (f"i{shown}",), tuple(f"i{row}" for row in options), index)
        for n, (shown, options, index) in enumerate(drawn)
    ]
    metrics = compute_metrics(score_questions(BundleCompleter(processor, ranker=model), questions)["ranker"])
    assert metrics["hit_rate@1"] > 0.6  # chance: .25
    assert metrics["valid_ratio"] == 1


def test_the_script_that_made_the_layers_still_draws_questions_with_the_same_tokens():
    path = Path(__file__).parents[2] / "training_scripts" / "pretrain_scratch_backbone.py"
    spec = importlib.util.spec_from_file_location("pretrain_scratch_backbone", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    embeddings = torch.randn(len(script.TOKENS), 32)
    for signal in ("text", "item", "both"):
        inputs, answers, ends, matches = script.QuestionMaker(32, 4, random.Random(0)).draw(embeddings, 5, 2, signal)
        assert inputs.shape[::2] == (4, 32) and len(ends) == 5
        assert matches[torch.arange(4), answers].all()
    vocabulary = train_tokenizer(["a"]).get_vocab()
    assert all(token in vocabulary for token in script.TOKENS if token != script.SEPARATOR)
