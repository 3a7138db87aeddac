"""The plain loop: it goes down a loss, and leaves model and random state as they were."""

import pytest
import torch
from torch import nn

from bundle_mllm.training.optimize import minimize, training_only


def test_the_parameters_go_down_the_loss():
    parameter = nn.Parameter(torch.tensor([3.0, -2.0]))
    minimize(lambda: parameter.square().sum(), [parameter], 100, "bar", lr=0.1, weight_decay=0.0)
    assert parameter.abs().max() < 0.5


def test_no_steps_change_nothing():
    parameter = nn.Parameter(torch.ones(2))
    minimize(lambda: parameter.sum(), [parameter], 0, "bar", lr=0.1, weight_decay=0.1)
    assert parameter.tolist() == [1, 1]


@pytest.mark.parametrize("steps", [*range(1, 13), 20, 100])
def test_every_number_of_steps_has_a_schedule(steps):
    parameter = nn.Parameter(torch.tensor([3.0]))
    minimize(lambda: parameter.square().sum(), [parameter], steps, "bar", lr=0.1, weight_decay=0.0)
    assert 0 < parameter.item() < 3


def test_only_the_given_parameters_require_gradients_for_a_while():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)).eval()
    given = list(model[0].parameters())
    before = torch.get_rng_state()
    with training_only(model, given, seed=0):
        assert model.training
        assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]
        first = torch.rand(3)
    with training_only(model, given, seed=0):
        assert torch.equal(torch.rand(3), first)
    assert not model.training and all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failure_leaves_the_model_as_it_was():
    model = nn.Linear(2, 2).eval()
    try:
        with training_only(model, [model.bias], seed=0):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert not model.training and model.weight.requires_grad
