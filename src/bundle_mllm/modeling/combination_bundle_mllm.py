"""How the scores of a ranker and a retriever are joined, their calibration, and for which models both hold.

Knows nothing about questions, scores or how the numbers were fitted.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import hub

from .conformal_bundle_mllm import BundleCalibration
from .ranking_bundle_mllm import MAX_OPTIONS

COMBINATION_FILE = "combination.json"
"""Where the combination stands in a model folder or repository that holds two models, or a calibrated one."""
_FIX = "fit them again (bundle-mllm retriever)"
_CALIBRATE = "calibrate again (bundle-mllm calibrate)"
_PARTS = ("ranker", "retriever")
_TOLERANCE = 0.005
"""Largest relative difference of a weight that loading in bfloat16 explains (2^-9), with a margin."""


@dataclass(frozen=True)
class BundleCombination:
    """How a `BundleCompleter` joins two models: `softmax((w * ranker + retriever) / T)` of their log-probabilities.

    The formula is ours (a product of experts). Weight 1 and temperature 1, the default, trust both models as they are.

    Attributes:
        ranker_weight: Weight w of the ranker, 0 or more.
        temperature: Divisor T of the joined log-probabilities, more than 0.
        num_ranked: How many items of a whole catalog, M, the ranker scores, 2 to 26: the retriever's best. Training
            sets it to what takes a second on its machine. Given candidates are not concerned.
        fitted_for: By part, "ranker" and "retriever", as far as there are these models, one weight of each parameter
            of that model (see `sample_weights`); `None` until a completer names its models here.
        calibration: What turns scores into sets with a guarantee; `None` if the models were not calibrated. A single
            model has a combination for this alone.

    Raises:
        ValueError: If a number is no number or out of range, or the samples are none.
    """

    ranker_weight: float = 1.0
    temperature: float = 1.0
    num_ranked: int = MAX_OPTIONS
    fitted_for: Mapping[str, Sequence[float | None]] | None = None
    calibration: BundleCalibration | None = None

    def __post_init__(self):
        for name, least in (("ranker_weight", "0 or more"), ("temperature", "more than 0")):
            value = getattr(self, name)
            if not _is_number(value) or value < 0 or (name == "temperature" and value == 0):
                raise ValueError(
                    f"{name} is {str(value)[:40]!r}, so joined scores would be no probabilities: give a "
                    f"number, {least}."
                )
        if isinstance(self.num_ranked, bool) or self.num_ranked not in range(2, MAX_OPTIONS + 1):
            raise ValueError(
                f"num_ranked is {str(self.num_ranked)[:40]!r}, but a prompt has 2 to {MAX_OPTIONS} options: give such "
                "a number."
            )
        if self.fitted_for is None:
            return
        if not isinstance(self.fitted_for, Mapping) or not self.fitted_for or set(self.fitted_for) - set(_PARTS):
            raise ValueError(
                'fitted_for does not name a "ranker" or a "retriever", so it is unknown which models the combination '
                f"was fitted for: {_FIX}."
            )
        for part, sample in self.fitted_for.items():
            if not isinstance(sample, list) or not all(value is None or _is_number(value) for value in sample):
                raise ValueError(f"The weights of the {part} in fitted_for are no list of numbers: {_FIX}.")

    def bind(self, ranker: Any = None, retriever: Any = None) -> "BundleCombination":
        """Return the combination with the names of these models.

        Raises:
            ValueError: If it was fitted for others.
        """
        models = {name: model for name, model in zip(_PARTS, (ranker, retriever), strict=True) if model is not None}
        known = self.fitted_for or {}
        if missing := [part for part in known if part not in models]:
            raise ValueError(
                f"The combination was fitted for a ranker and a retriever, but there is no {missing[0]}, so answers "
                "would be those of one model: give both (bundle-mllm retriever makes a retriever), or no combination."
            )
        samples = {part: sample_weights(model) for part, model in models.items()}
        for part, sample in known.items():
            found = samples[part]
            if len(found) != len(sample) or any(_differ(*pair) for pair in zip(found, sample, strict=True)):
                about, fix = "its calibration is", _CALIBRATE
                if len(known) == len(_PARTS):
                    about = f"ranker_weight {self.ranker_weight:.3g} and temperature {self.temperature:.3g} were"
                    fix = _FIX
                raise ValueError(
                    f"The {part} has other weights than the one that {about} fitted for, so they say nothing about "
                    f"it: {fix}."
                )
        if known and len(known) < len(models):
            raise ValueError(f"The combination was fitted for the {next(iter(known))} alone: {_FIX}.")
        return self if known else replace(self, fitted_for=samples)

    def unbound(self) -> "BundleCombination":
        """Return the combination for other models of the same kind, such as ones that were trained further."""
        return replace(self, fitted_for=None, calibration=None)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `combination.json` to a folder."""
        path = Path(folder, COMBINATION_FILE)
        path.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return what the file holds; a calibration only if there is one."""
        values = asdict(self)
        return values if self.calibration else {name: v for name, v in values.items() if name != "calibration"}

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **kwargs: Any) -> "BundleCombination | None":
        """Read `combination.json` of a model folder or Hub repository; `None` if there is none.

        Args:
            name: The folder or repository.
            **kwargs: Which one of the Hub, such as `revision`.

        Raises:
            ValueError: If the file holds anything else.
        """
        path = hub.cached_file(str(name), COMBINATION_FILE, **kwargs, _raise_exceptions_for_missing_entries=False)
        if path is None:
            return None
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            names = [name for name in cls.__dataclass_fields__ if name != "calibration"]
            if not isinstance(values, dict) or set(values) - {"calibration"} != set(names):
                raise ValueError(f"it does not hold {', '.join(names)} and, at most, calibration: {_FIX}.")
            if values["fitted_for"] is None:
                raise ValueError(f"fitted_for names no models: {_FIX}.")
            if calibration := values.pop("calibration", None):
                known = set(BundleCalibration.__dataclass_fields__)
                if not isinstance(calibration, dict) or {*calibration, "bundles"} != known:
                    raise ValueError(f"calibration does not hold num_candidates and conformity: {_CALIBRATE}.")
                values["calibration"] = BundleCalibration(**calibration)
            return cls(**values)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{COMBINATION_FILE} cannot be used: {error}") from error


def sample_weights(model: Any) -> list[float | None]:
    """Return one weight of each parameter, the one in its middle, to six digits: enough to tell two models apart.

    A digest would be shorter, but differs when the same model is loaded in half precision; samples are compared with
    a tolerance. They do not depend on files, devices or the catalog, and see an adapter. `None` where a weight is not
    at hand: quantized, on another device of a group, or not loaded.
    """
    sample: list[float | None] = []
    for parameter in model.parameters():
        weights = parameter.data
        at_hand = type(weights) is torch.Tensor and not weights.is_meta and weights.numel() > 0
        value = math.nan
        if at_hand and weights.is_floating_point() and weights.element_size() > 1:
            value = float(weights.reshape(-1)[weights.numel() // 2])
        sample.append(float(f"{value:.6g}") if math.isfinite(value) else None)
    return sample


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _differ(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and not math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=1e-6)
