"""How many inputs each test draws: a fixed sample, or as many as `RANDOM_INPUTS` says (`make test-random`)."""

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

INPUTS = os.environ.get("RANDOM_INPUTS")
COUNTS: Counter[str] = Counter()
"""Inputs that were accepted and refused, by test."""

settings.register_profile(
    "inputs",
    max_examples=int(INPUTS or 25),
    derandomize=INPUTS is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
settings.load_profile("inputs")


@pytest.fixture
def count(request):
    """Count an input of this test as accepted or refused."""
    return lambda outcome: COUNTS.update([f"{request.node.name}: {outcome}"])


def pytest_terminal_summary(terminalreporter):
    for name, number in sorted(COUNTS.items()):
        terminalreporter.write_line(f"{number:>8,}  {name}")
