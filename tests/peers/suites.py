"""The tests of the installed transformers and peft as modules: `import_suite("transformers", "test_modeling_common")`.

They lie in `out/peers/sources`, where fetch.py put them. A source distribution of transformers holds `tests/test_*.py`
alone; what these import from the folders below is taken from a checkout of transformers' repository, if the variable
TRANSFORMERS_CHECKOUT names one, and is empty otherwise.

Knows nothing about our classes.
"""

import importlib
import importlib.metadata
import os
import sys
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

SOURCES = Path(__file__).parents[2] / "out/peers/sources"
CHECKOUT = os.environ.get("TRANSFORMERS_CHECKOUT")
COMMON_SETTINGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["SomeModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}
"""Settings that any configuration keeps; transformers has such a list beside the tests that it does not distribute."""


class PeerTest(unittest.TestCase):
    """A test case whose parts (`subTest`) fail or skip the test as a whole; it skips if all of its parts do."""

    def setUp(self) -> None:
        """Forget the parts."""
        super().setUp()
        self.parts: list[str] = []

    @contextmanager
    def subTest(self, msg: object = None, **params: object) -> Iterator[None]:  # noqa: N802
        """Run a part."""
        try:
            yield
            self.parts.append("")
        except unittest.SkipTest as skip:
            self.parts.append(str(skip))

    def tearDown(self) -> None:
        """Skip a test of which no part ran."""
        super().tearDown()
        if self.parts and all(self.parts):
            self.skipTest(self.parts[0])


def version(name: str) -> str:
    """Return the version that is imported."""
    return importlib.metadata.version(name)


def folder(name: str) -> Path:
    """Return where the tests of the installed version lie, or should."""
    return SOURCES / f"{name}-{version(name)}" / "tests"


def import_suite(name: str, module: str) -> Any:
    """Import a module of the tests of a package, of exactly the installed version."""
    package = f"{name}_suites"
    if package not in sys.modules:
        paths = [folder(name)] + ([Path(CHECKOUT, "tests")] if CHECKOUT and name == "transformers" else [])
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(path) for path in paths]
        _fill_gaps(package)
    return importlib.import_module(f"{package}.{module}")


def _fill_gaps(package: str) -> None:
    """Add what the tests import and none of the folders holds; none of it is used by a test that runs."""
    if package == "peft_suites":
        _add("diffusers", StableDiffusionPipeline=type("StableDiffusionPipeline", (), {}))
        return
    nothing = {"ExportTesterMixin": type("ExportTesterMixin", (), {})}
    nothing["ExportGenerateTesterMixin"] = type("ExportGenerateTesterMixin", (nothing["ExportTesterMixin"],), {})
    _add(f"{package}.exporters")
    _add(f"{package}.exporters.test_export", **nothing)
    _add("tests.exporters.test_export", **nothing)
    _add("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)
    _add(f"{package}.utils")
    _add(f"{package}.utils.test_configuration_utils", config_common_kwargs=COMMON_SETTINGS)
    if not CHECKOUT:
        _add(f"{package}.generation")
        _add(f"{package}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))


def _add(name: str, **attributes: Any) -> None:
    module = ModuleType(name)
    module.__path__ = []
    vars(module).update(attributes)
    sys.modules.setdefault(name, module)
