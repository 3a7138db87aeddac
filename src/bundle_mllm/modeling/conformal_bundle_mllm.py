"""Prediction sets: the candidates among which the answer is with a stated probability (split conformal prediction).

Knows nothing about models, questions, or how scores were computed.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

_FIX = "calibrate again (bundle-mllm calibrate)"
_ROUNDING = 1e-9
_DIGEST = re.compile("[0-9a-f]{6}")


def bundle_digest(bundle_id: str) -> str:
    """Return six digits of the SHA-256 of a bundle's id: enough to find it again, too few to prove it."""
    return hashlib.sha256(bundle_id.encode()).hexdigest()[:6]


@dataclass(frozen=True)
class BundleCalibration:
    """The conformity of known answers, which says how well right answers usually fit.

    The p-value of a candidate is the share of known answers that fit no better than it does, itself counted among
    them. If the candidate is the answer, and its question was drawn as those of the known answers were, its p-value is
    `a` or less with the probability `a` at most. So the candidates whose p-value is above `1 - coverage` hold the
    answer with the probability `coverage` or more, however good the models are (Vovk, Gammerman, Shafer, Algorithmic
    Learning in a Random World, 2005; split as by Papadopoulos et al., ECML 2002). This holds on average over questions
    and calibrations, not for each kind of question by itself. Where no p-value is above, nothing fits; that is wrong
    in at most `1 - coverage` of the questions that do have an answer.

    Conformity is on a scale on which other candidates count little (see `conformity_of`). Probabilities
    among the candidates (Sadinle et al., JASA 2019) always sum to one: calibrated on those with 10 candidates, sets of
    .90 held the answer in .97 of the demo's questions with 5 and in .80 with 20, and none was ever found not to fit.

    Attributes:
        num_candidates: How many candidates the ranker was shown beside each other, on which its conformity depends:
            among fewer an answer fits no worse, among more it would.
        conformity: By part, "ranker", "retriever" and "both" as far as there are these models, the conformity of the
            answer to each question, one question about each bundle.
        bundles: The digests of these bundles, see `bundle_digest`: of questions about them nothing is guaranteed, and
            what would be measured on them is what was asked for. None if they are not known.

    Raises:
        ValueError: If the values are no calibration.
    """

    num_candidates: int
    conformity: Mapping[str, Sequence[float]]
    bundles: Sequence[str] = ()

    def __post_init__(self):
        if (
            not isinstance(self.num_candidates, int)
            or isinstance(self.num_candidates, bool)
            or self.num_candidates < 2
        ):
            raise ValueError(f"num_candidates of the calibration is {str(self.num_candidates)[:40]!r}: {_FIX}.")
        if not isinstance(self.conformity, Mapping) or not self.conformity:
            raise ValueError(f"The calibration is of no model: {_FIX}.")
        for part, values in self.conformity.items():
            is_list = isinstance(values, list | tuple) and len(values) > 0
            if not is_list or not all(isinstance(value, float) and math.isfinite(value) for value in values):
                raise ValueError(f"The calibration of the {part} is no list of finite numbers: {_FIX}.")
        is_list = isinstance(self.bundles, list | tuple)
        if not is_list or not all(isinstance(each, str) and _DIGEST.fullmatch(each) for each in self.bundles):
            raise ValueError(f"The bundles of the calibration are no list of digests: {_FIX}.")
        object.__setattr__(self, "bundles", tuple(self.bundles))

    @property
    def highest_coverage(self) -> float:
        """The highest probability that so many known answers can promise: of n, n / (n + 1)."""
        number = min(map(len, self.conformity.values()))
        return number / (number + 1)

    def calibrated_on(self, bundle_id: str) -> bool:
        """Return whether a bundle is one of those that calibrated, as far as these are known."""
        return bundle_digest(bundle_id) in self.bundles

    def p_values(self, conformity: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the p-values of candidates `[K]`: of n known answers, (1 + those that fit no better) / (n + 1).

        Args:
            conformity: That of the candidates `[K]` by part. The last part counts, which is the one that answers; but
                of more candidates than the ranker was calibrated with, or than it was shown, the retriever.

        Raises:
            ValueError: If there are more candidates, and there is no retriever.
        """
        part = list(conformity)[-1]
        number = len(conformity[part])
        if part != "retriever" and (number > self.num_candidates or bool(conformity[part].isinf().any())):
            if "retriever" not in conformity:
                raise ValueError(
                    f"The ranker was calibrated with {self.num_candidates} candidates, and among {number} its answers "
                    "hold the right one less often: give fewer, add a retriever (bundle-mllm retriever), or calibrate "
                    "with as many (bundle-mllm calibrate)."
                )
            part = "retriever"
        known = torch.tensor(self.conformity[part], dtype=torch.float64).sort().values
        no_better = torch.searchsorted(known, conformity[part].double().cpu().contiguous(), right=True)
        return (1 + no_better).double() / (1 + len(known))

    def holds_answer(self, p_values: torch.Tensor, coverage: float) -> torch.Tensor:
        """Return which candidates belong to the set that holds the answer with the probability `coverage`.

        Raises:
            ValueError: If `coverage` is no such probability, or so many known answers cannot promise it.
        """
        number, highest = min(map(len, self.conformity.values())), self.highest_coverage
        is_number = isinstance(coverage, int | float) and not isinstance(coverage, bool)
        if not is_number or not 0 < coverage <= highest:
            raise ValueError(
                f"coverage is {str(coverage)[:40]!r}, but {number} known answers can promise probabilities above 0 "
                f"and up to {math.floor(1000 * highest) / 1000:g}: give such a number, for example 0.9."
            )
        return p_values > 1 - coverage + _ROUNDING
