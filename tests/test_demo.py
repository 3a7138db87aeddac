"""The demo's own parts; its training runs in `make demo`, and README shows what that prints."""

import json
import re
from pathlib import Path

from bundle_mllm.cli import show

ROOT = Path(__file__).parents[1]


def test_the_readme_shows_what_the_demo_prints():
    """`docs/demo.json` is the file that `make demo` wrote; README must show what is printed for it, to the letter."""
    result = json.loads((ROOT / "docs" / "demo.json").read_text())
    shown = re.search(r"make demo\n```\n+```text\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert shown.group(1) == show.demo(result, {})


def test_the_recorded_demo_learned_what_it_claims():
    result = json.loads((ROOT / "docs" / "demo.json").read_text())
    assert result["stage_one"] >= result["random"] + 0.15
    assert result["stage_two"] >= result["stage_one"] + 0.15
    assert result["stage_two"] - result["stage_two_shuffled"] >= 0.5 * (result["stage_two"] - result["stage_one"])
    assert result["valid_ratio"] >= 0.99
