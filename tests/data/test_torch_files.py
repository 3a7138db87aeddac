"""Tensor files of others: nothing runs, and a few bytes cannot claim gigabytes."""

import time

import pytest
import torch

from bundle_mllm.data.torch_files import load_matrix, load_weights
from bundle_mllm.errors import BundleMLLMError


def test_a_matrix_reads_back(tmp_path):
    torch.save(torch.ones(3, 2), tmp_path / "a.pt")
    assert load_matrix(tmp_path / "a.pt").equal(torch.ones(3, 2))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1 << 16, 1 << 14), "claims 1,073,741,824 values"), ((1 << 20, 1 << 20), "tensor values, above")],
)
def test_a_view_that_repeats_one_value_is_refused_before_it_is_read(tmp_path, shape, message):
    torch.save(torch.zeros(1, 1).expand(shape), tmp_path / "a.pt")
    torch.save({"w": torch.zeros(1, 1).expand(shape)}, tmp_path / "b.pt")
    assert (tmp_path / "a.pt").stat().st_size < 10_000
    start = time.process_time()
    for read, name in ((load_matrix, "a.pt"), (load_weights, "b.pt")):
        with pytest.raises(BundleMLLMError, match=message):
            read(tmp_path / name)
    assert time.process_time() - start < 2
