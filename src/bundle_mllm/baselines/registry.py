"""Look baselines up by name: `popularity`, `similarity:visual`, …, and `all`.

Knows nothing about how a baseline works; imports only the requested ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import import_module

from bundle_mllm.baselines.base import Baseline
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.memberships import BUNDLE_ITEM
from bundle_mllm.errors import BundleMLLMError

ALL = "all"
LLM = "llm"
SIMILARITY = "similarity"
BOOSTED = ("boosted_ranker", "listwise_ranker")
STEPS_IN_RANKER = 50
"""Steps of LightGCN in boosted rankers, which fit it once for each fold; they are little worse for it."""


@dataclass(frozen=True)
class BaselineEntry:
    """Where the code of a baseline is, and its needs.

    Attributes:
        module: Module of this package.
        maker: Its class in that module.
        seeded: Whether it takes a seed.
        simple: Whether its scores go into boosted rankers.
        reads_users: Whether it reads the user log.
        catalogs: Whether it scores whole catalogs (a `CatalogBaseline`).
    """

    module: str
    maker: str
    seeded: bool = False
    simple: bool = True
    reads_users: bool = False
    catalogs: bool = True

    def load(self) -> Callable[..., Baseline]:
        """Import the class."""
        return getattr(import_module(f"{__package__}.{self.module}"), self.maker)


BASELINES: Mapping[str, BaselineEntry] = {
    "random": BaselineEntry("counting", "Chance", seeded=True, simple=False),
    "popularity": BaselineEntry("counting", "Popularity"),
    "co_occurrence": BaselineEntry("counting", "CoOccurrence"),
    "item_knn": BaselineEntry("counting", "ItemKNN"),
    "item_knn_users": BaselineEntry("counting", "UserKNN", reads_users=True),
    "tfidf": BaselineEntry("similarity", "TfidfCosine"),
    "category_pmi": BaselineEntry("counting", "CategoryPMI"),
    "lightgcn": BaselineEntry("similarity", "BundleLightGCN", seeded=True),
    "lightgcn_users": BaselineEntry("similarity", "UserLightGCN", seeded=True, reads_users=True),
    "ease": BaselineEntry("ease", "EASE", simple=False),
    "ease_users": BaselineEntry("ease", "UserEASE", simple=False, reads_users=True),
    "multivae": BaselineEntry("multivae", "MultiVAE", seeded=True, simple=False),
    "set_transformer": BaselineEntry("set_transformer", "SetTransformer", seeded=True, simple=False, reads_users=True),
    "boosted_ranker": BaselineEntry(
        "boosting", "BoostedRanker", seeded=True, simple=False, reads_users=True, catalogs=False
    ),
    "listwise_ranker": BaselineEntry(
        "boosting", "ListwiseRanker", seeded=True, simple=False, reads_users=True, catalogs=False
    ),
}
"""Every baseline by name, except `similarity:MODALITY` (one per modality) and `llm:MODEL`."""


def resolve_names(names: Sequence[str], folder: DatasetFolder) -> dict[str, bool]:
    """Return the requested names, each once, and whether each was named (rather than included by `all`).

    `all` includes each that needs no model of its own, and similarity by each modality of the folder.

    Raises:
        BundleMLLMError: If a name is unknown or incomplete.
    """
    resolved: dict[str, bool] = {}
    for name in names:
        if name == ALL:
            store = folder.features()
            similar = [f"{SIMILARITY}:{modality}" for modality in (store.modalities if store else {})]
            position = list(BASELINES).index("lightgcn")  # trained ones come last
            for each in (*list(BASELINES)[:position], *similar, *list(BASELINES)[position:]):
                resolved.setdefault(each, False)
            continue
        kind, _, argument = name.partition(":")
        if kind in (SIMILARITY, LLM):
            if not argument:
                lacks, example = ("modality", "visual") if kind == SIMILARITY else ("model", "Qwen/Qwen3-0.6B")
                raise BundleMLLMError(f"The baseline {name!r} lacks its {lacks}: write for example {kind}:{example}.")
        elif name not in BASELINES:
            choices = [*BASELINES, f"{SIMILARITY}:MODALITY", f"{LLM}:MODEL", ALL]
            near = get_close_matches(name, choices, n=1)
            hint = f"did you mean {near[0]!r}? Choose" if near else "choose"
            raise BundleMLLMError(f"There is no baseline {name!r}: {hint} from {', '.join(choices)}.")
        resolved[name] = True
    return resolved


def make_baseline(name: str, folder: DatasetFolder, seed: int = 0) -> Baseline:
    """Make a baseline, not yet fitted, by a name that [`resolve_names`] returned, other than `llm:MODEL`."""
    if name.startswith(f"{SIMILARITY}:"):
        return BaselineEntry("similarity", "FeatureCosine").load()(name.partition(":")[2])
    entry = BASELINES[name]
    make = entry.load()
    if name in BOOSTED:
        return make(_simple_makers(folder, seed), seed=seed)
    return make(seed=seed) if entry.seeded else make()


def _simple_makers(folder: DatasetFolder, seed: int) -> dict[str, Callable[[], Baseline]]:
    """Return makers of the baselines whose scores go into boosted rankers."""
    names = [name for name, entry in BASELINES.items() if entry.simple]
    store = folder.features()
    modalities = store.modalities if store else {}
    # Features of training bundles contain the answers of training questions.
    names += [f"{SIMILARITY}:{modality}" for modality in modalities if modality != BUNDLE_ITEM]
    makers: dict[str, Callable[[], Baseline]] = {name: partial(make_baseline, name, folder, seed) for name in names}
    for name in ("lightgcn", "lightgcn_users"):  # fitted once per fold
        makers[name] = partial(BASELINES[name].load(), seed=seed, steps=STEPS_IN_RANKER)
    return makers
