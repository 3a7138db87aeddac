"""Fixtures over `tiny_models`."""

import pytest
from tiny_models import make_model, make_processor


@pytest.fixture
def tokenizer():
    return make_processor().tokenizer


@pytest.fixture
def processor():
    return make_processor()


@pytest.fixture
def model(processor):
    return make_model(separator_token_id=processor.separator_token_id)


@pytest.fixture
def question():
    return {"partial": ["i0", "i1"], "candidates": ["i2", "i3", "i4"]}
