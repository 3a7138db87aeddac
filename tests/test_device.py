"""Precision and memory: asked of the processor, and stated."""

import pytest
import torch

from bundle_mllm.device import gains_by_bfloat16, mixed_precision, peak_memory


@pytest.mark.parametrize(
    ("capabilities", "gains"),
    [
        ({"avx2": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_tile": True}, True),
        ({"avx512_bf16": False}, False),
    ],
)
def test_a_processor_without_bfloat16_instructions_computes_in_float32(monkeypatch, capabilities, gains):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert gains_by_bfloat16() is gains


@pytest.mark.parametrize("enabled", [False, True])
def test_mixed_precision_changes_products_and_no_weights(enabled):
    layer = torch.nn.Linear(4, 4)
    with mixed_precision(enabled):
        product = layer(torch.ones(1, 4))
    assert product.dtype == (torch.bfloat16 if enabled else torch.float32)
    assert layer.weight.dtype == torch.float32
    assert layer(torch.ones(1, 4)).dtype == torch.float32


def test_peak_memory_is_in_gibibytes():
    assert 0.05 < peak_memory() < 64
