import official_reference
import pytest
import torch

pytestmark = pytest.mark.skipif(not official_reference.SHARED.is_dir(), reason="shared/official is not here")


@pytest.fixture(scope="module", params=[("default", False), ("components", True)], ids=["default", "components"])
def official(request):
    with torch.inference_mode():
        yield official_reference.official_model(*request.param)


def test_fused_items_equal_those_of_the_official_code(official):
    model, golden = official
    fused = model.model.fusion(*model.model.catalog.gather(torch.arange(40)))
    assert torch.allclose(fused, golden["fused"], atol=1e-5, rtol=0)


def test_item_embeddings_equal_those_of_the_official_code(official):
    model, golden = official
    assert torch.allclose(model.get_item_embeddings(torch.arange(40)), golden["item_embeddings"], atol=1e-5, rtol=0)


def test_the_separator_is_that_of_the_official_code(official):
    model, golden = official
    assert torch.equal(model.model.separator.weight, golden["separator"])


@pytest.mark.parametrize("index", range(4))
def test_logits_equal_those_of_the_official_code(official, index):
    model, golden = official
    sequence = golden[f"sequence_{index}"]
    items = model.config.item_token_offset - 2 - sequence
    ids = torch.where(sequence >= 0, sequence, torch.where(sequence == -1, official_reference.SEPARATOR, items))
    logits = model(input_ids=ids.unsqueeze(0)).logits[0]
    assert torch.allclose(logits, golden[f"logits_{index}"], atol=1e-5, rtol=0)
