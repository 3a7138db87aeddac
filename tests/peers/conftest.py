"""Collect the tests of peers only for `make test-peers`, and hold them against the table of what does not apply.

A test that the table names must fail or skip itself, each line must name a test, and no other test may skip itself.
"""

import os
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pytest
from not_applicable import NOT_APPLICABLE
from suites import CHECKOUT, version

collect_ignore_glob = [] if os.environ.get("PEERS") else ["test_*.py"]
FOLDER = Path(__file__).parent
REASON, NAMED = pytest.StashKey[str](), pytest.StashKey[set[str]]()


def name_of(item: pytest.Item) -> str:
    """Return how the table names a test: `RankerTest.test_training`."""
    return "::".join(item.nodeid.split("::")[1:]).replace("::", ".")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Expect the tests that do not apply to fail."""
    for item in items:
        for pattern, reason in NOT_APPLICABLE.items():
            if item.path.parent == FOLDER and fnmatch(name_of(item), pattern):
                item.stash[REASON] = reason
                item.config.stash.setdefault(NAMED, set()).add(pattern)
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture
def named(request) -> set[str]:
    """The lines of the table that name a test."""
    return request.config.stash.get(NAMED, set())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Let no test skip itself unless the table says why."""
    report = yield
    if report.skipped and item.path.parent == FOLDER and REASON not in item.stash:
        report.outcome = "failed"
        report.longrepr = f"{name_of(item)} skips itself, and not_applicable.py does not say why: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter):
    """Count by suite."""
    counts = Counter()
    for outcome in ("passed", "skipped", "xfailed", "failed"):
        for report in terminalreporter.getreports(outcome):
            if "tests/peers/" in report.nodeid and (report.when == "call" or outcome == "skipped"):
                counts[report.nodeid.split("::")[1], outcome] += 1
    suites = sorted({suite for suite, _ in counts})
    if not suites:
        return
    versions = f"transformers {version('transformers')}, peft {version('peft')}"
    terminalreporter.write_line(f"\n| {versions} | passed | does not apply | failed |\n|---|---|---|---|")
    for suite in suites:
        passed, failed = counts[suite, "passed"], counts[suite, "failed"]
        left_out = counts[suite, "skipped"] + counts[suite, "xfailed"]
        terminalreporter.write_line(f"| {suite} | {passed} | {left_out} | {failed} |")
    if not CHECKOUT:
        terminalreporter.write_line("Without TRANSFORMERS_CHECKOUT the suite of generation was left out.")
