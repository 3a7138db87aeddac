"""Settings: values of related types become those of the fields, and functions take the fields as arguments."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.settings import Settings, as_dict, configured_by, read_overrides, with_overrides


@dataclass(frozen=True, kw_only=True)
class Common(Settings):
    """Options of several functions."""

    seed: int = 0
    rate: float = 0.5


@dataclass(frozen=True)
class Inner(Settings):
    steps: int = 3
    kind: Literal["plain", "hard"] = "plain"


@dataclass(frozen=True)
class Outer(Common):
    data: Path
    files: tuple[Path, ...] = ()
    choice: str | tuple[str, ...] | None = None
    sizes: tuple[int, int] = (1, 2)
    progress: Callable[[int], None] | None = None
    shares: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


@configured_by(Outer)
def run(settings: Outer) -> Outer:
    """Return the settings."""
    return settings


def test_a_function_takes_the_fields_of_its_settings():
    settings = run("data", files=["a", Path("b")], choice=["x"], seed=np.int64(3), rate=1, progress=print)
    assert settings == Outer(Path("data"), (Path("a"), Path("b")), ("x",), progress=print, seed=3, rate=1.0)
    assert type(settings.seed) is int and type(settings.rate) is float
    assert run(settings) is settings
    assert run("data", choice="x").choice == "x"
    assert list(inspect.signature(run).parameters) == [
        "data", "files", "choice", "sizes", "progress", "shares", "inner", "seed", "rate",
    ]  # fmt: skip
    with pytest.raises(TypeError, match="sead"):
        run("data", sead=3)
    with pytest.raises(TypeError, match=r"seed beside Outer\(\.\.\.\).* give either"):
        run(settings, seed=4)
    with pytest.raises(TypeError, match=r"'other' beside Outer"):
        run(settings, "other")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": "three"}, "seed must be of type int, not 'three'"),
        ({"seed": True}, "seed must be of type int"),
        ({"rate": "much"}, "rate must be a number"),
        ({"files": "a"}, "files must be a list, not 'a'"),
        ({"sizes": [1, 2, 3]}, "sizes must be a list of 2"),
        ({"inner": 3}, "inner is a group of settings"),
        ({"inner": {"steps": "many"}}, "inner.steps must be of type int"),
        ({"inner": {"kind": "soft"}}, "inner.kind must be one of 'plain', 'hard', not 'soft'"),
        ({"shares": {"a": "much"}}, r"shares\['a'\] must be a number, not 'much'"),
        ({"shares": {3: 0.5}}, "shares must be of type str, not 3"),
        ({"inner": {"stops": 1}}, "Unknown setting 'inner.stops': the settings here are steps, kind"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(values, message):
    with pytest.raises(BundleMLLMError, match=message):
        run("data", **values)
    with pytest.raises(BundleMLLMError, match=message):
        with_overrides(Outer(Path("data")), values)


def test_a_mapping_changes_a_group_of_settings():
    assert run("data", inner={"steps": 5}).inner == Inner(steps=5)
    changed = with_overrides(Outer(Path("data"), inner=Inner(kind="hard")), {"inner": {"steps": 5}, "rate": "1e-3"})
    assert changed == Outer(Path("data"), inner=Inner(5, "hard"), rate=0.001)
    assert as_dict(changed)["inner"] == {"steps": 5, "kind": "hard"}
    assert as_dict(changed)["data"] == "data"


def test_a_config_file_maps_names_to_values(tmp_path):
    file = tmp_path / "run.yaml"
    with pytest.raises(BundleMLLMError, match="does not exist"):
        read_overrides(file)
    for text, message in (("- a", "holds a list"), ("a: [", "not valid YAML")):
        file.write_text(text)
        with pytest.raises(BundleMLLMError, match=message):
            read_overrides(file)
    file.write_text("")
    assert read_overrides(file) == {}
    file.write_text("inner:\n  steps: 4\n")
    assert with_overrides(Outer(Path("data")), read_overrides(file)).inner.steps == 4


DEEP = "a: " + "[" * 3_000 + "]" * 3_000
BOMB = "a: &a [x]\n" + "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "is nested too deeply"),
        (BOMB, r"has an alias \(\*name\): write the value again"),
        ("a: " + "x" * 100_000, r"has 100,003 yaml bytes, above the bound of 100,000"),
        ("a: [", "is not valid YAML"),
        ("a: 2024-99-99", "is not valid YAML"),
        ("a: " + "9" * 5_000, "is not valid YAML"),
        ("- a", "holds a list"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_refused_in_a_line(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(BundleMLLMError, match=rf"run\.yaml {message}"):
        read_overrides(tmp_path / "run.yaml")


def test_a_folder_is_no_config_file(tmp_path):
    with pytest.raises(BundleMLLMError, match=r"cannot be read \(Is a directory\): give a file"):
        read_overrides(tmp_path)


def test_a_config_file_of_another_encoding_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(BundleMLLMError, match="is not UTF-8 text"):
        read_overrides(tmp_path / "run.yaml")


@pytest.mark.parametrize("values", [{5: 1}, {None: 1}, {"inner": {5: 1}}, {(1, 2): 3}])
def test_a_key_that_is_no_text_is_refused_by_name(values):
    with pytest.raises(BundleMLLMError, match=r"Unknown setting '(inner\.)?(5|None|\(1, 2\))'"):
        with_overrides(Outer("data"), values)


def test_nan_is_no_number():
    for value in (float("nan"), "nan", np.float32("nan")):
        with pytest.raises(BundleMLLMError, match="rate must be a number, not"):
            run("data", rate=value)


@pytest.mark.parametrize("seed", [-1, 1 << 31])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(BundleMLLMError, match="seed is"):
        Seeded(seed=seed)
    assert Seeded(seed=0) == Seeded() and Seeded(seed=None).seed is None


@dataclass(frozen=True)
class Seeded(Settings):
    """Settings with a seed."""

    seed: int | None = 0
    """The seed."""
