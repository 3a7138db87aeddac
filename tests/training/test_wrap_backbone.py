"""A backbone and a tokenizer become an untrained Bundle-MLLM over a catalog."""

import pytest
from tiny_models import make_tokenizer
from transformers import BloomConfig, BloomForCausalLM

from bundle_mllm.data import DatasetFolder, make_questions
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.training.backbone import wrap_backbone


@pytest.fixture
def data(tiny_data):
    return DatasetFolder.open(tiny_data)


def test_a_backbone_that_names_no_longest_prompt_takes_any(data):
    tokenizer = make_tokenizer()
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=2)
    model, processor = wrap_backbone(BloomForCausalLM(config), tokenizer, data.catalog, {})
    assert processor.max_length is None
    processor.show_items = False
    questions = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=20, seed=0)
    assert len(score_questions(model, processor, questions)) == len(questions)
