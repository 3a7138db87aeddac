"""How many inputs each test draws: a fixed sample, or as many as `RANDOM_INPUTS` says (`make test-random`).

Then each test must accept a third of its inputs, or it would show little but how mistakes are refused.
"""

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from random_values import INPUTS

settings.register_profile(
    "inputs",
    max_examples=INPUTS or 20,
    derandomize=not INPUTS,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
settings.load_profile("inputs")


@pytest.fixture
def count(request):
    """Count an input of this test as "accepted" or "refused"."""
    counts = Counter()
    yield lambda outcome: counts.update([outcome])
    request.node.user_properties.append(("inputs", [counts["accepted"], counts["refused"]]))
    assert not INPUTS or 3 * counts["accepted"] >= counts.total(), f"few inputs are accepted: {counts}"


def pytest_terminal_summary(terminalreporter, config):
    reports = [each for kind in terminalreporter.stats.values() for each in kind]
    ends = [each for each in reports if getattr(each, "when", None) == "teardown"]
    counts = {each.nodeid.rpartition("::")[2]: dict(each.user_properties).get("inputs") for each in ends}
    counts = {name: numbers for name, numbers in sorted(counts.items()) if numbers}
    for name, (accepted, refused) in counts.items():
        terminalreporter.write_line(f"{accepted:>8,} accepted {refused:>8,} refused  {name}")
    if counts:
        total = sum(map(sum, counts.values()))
        terminalreporter.write_line(f"{total:>8,} inputs, seed {config.getoption('--hypothesis-seed', None)}")
