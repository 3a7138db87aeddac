"""Find baselines by name: `popularity`, `similarity:visual`, …, and `all`.

It must not know how a baseline works, nor import one that is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import import_module

from bundle_mllm.baselines.base import Baseline
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.errors import BundleMLLMError

ALL = "all"
LLM = "llm"
SIMILARITY = "similarity"
RANKER = "boosted_ranker"
STEPS_IN_RANKER = 50
"""Steps of LightGCN where the ranker fits it anew for each fold; it loses little by them."""


@dataclass(frozen=True)
class Entry:
    """Where a baseline is found.

    Attributes:
        module: Module of this package.
        maker: Its class there.
        seeded: Whether it takes a seed.
        simple: Whether its scores go into the boosted ranker.
    """

    module: str
    maker: str
    seeded: bool = False
    simple: bool = True


BASELINES: Mapping[str, Entry] = {
    "random": Entry("counting", "Chance", seeded=True, simple=False),
    "popularity": Entry("counting", "Popularity"),
    "co_occurrence": Entry("counting", "CoOccurrence"),
    "item_knn": Entry("counting", "ItemKNN"),
    "item_knn_users": Entry("counting", "UserKNN"),
    "tfidf": Entry("similarity", "TfidfCosine"),
    "category_pmi": Entry("counting", "CategoryPMI"),
    "lightgcn": Entry("graph", "BundleLightGCN", seeded=True),
    "lightgcn_users": Entry("graph", "UserLightGCN", seeded=True),
    "multivae": Entry("multivae", "MultiVAE", seeded=True, simple=False),
    "set_transformer": Entry("set_transformer", "SetTransformer", seeded=True, simple=False),
    RANKER: Entry("boosting", "BoostedRanker", seeded=True, simple=False),
}
"""Every baseline by name, except `similarity:MODALITY` (one per modality) and `llm:MODEL`."""


def expand(names: Sequence[str], folder: DatasetFolder) -> dict[str, bool]:
    """Resolve what a user asked for.

    Args:
        names: Names of baselines; `all` stands for each that needs no model of its own.
        folder: The dataset folder, which says what modalities there are.

    Returns:
        The names, each once, and whether each was named (rather than meant by `all`).

    Raises:
        BundleMLLMError: A name is unknown or incomplete.
    """
    expanded: dict[str, bool] = {}
    for name in names:
        if name == ALL:
            store = folder.features()
            similar = [f"{SIMILARITY}:{modality}" for modality in (store.modalities if store else {})]
            place = list(BASELINES).index("lightgcn")  # what is trained comes last
            for each in (*list(BASELINES)[:place], *similar, *list(BASELINES)[place:]):
                expanded.setdefault(each, False)
            continue
        kind, _, which = name.partition(":")
        if kind in (SIMILARITY, LLM):
            if not which:
                example = "similarity:visual" if kind == SIMILARITY else "llm:Qwen/Qwen3-0.6B"
                raise BundleMLLMError(f"The baseline {name!r} does not say which: write for example {example}.")
        elif name not in BASELINES:
            choices = [*BASELINES, f"{SIMILARITY}:MODALITY", f"{LLM}:MODEL", ALL]
            near = get_close_matches(name, choices, n=1)
            meant = f"did you mean {near[0]!r}? Choose" if near else "choose"
            raise BundleMLLMError(f"There is no baseline {name!r}: {meant} from {', '.join(choices)}.")
        expanded[name] = True
    return expanded


def make_baseline(name: str, folder: DatasetFolder, seed: int = 0) -> Baseline:
    """Make a baseline, not yet fitted.

    Args:
        name: A name that [`expand`] returned, other than `llm:MODEL`.
        folder: The dataset folder it will be fitted to.
        seed: Of those that are random.
    """
    if name.startswith(f"{SIMILARITY}:"):
        return _find("similarity", "FeatureCosine")(name.partition(":")[2])
    entry = BASELINES[name]
    make = _find(entry.module, entry.maker)
    if name == RANKER:
        return make(_simple_ones(folder, seed), seed=seed)
    return make(seed=seed) if entry.seeded else make()


def _simple_ones(folder: DatasetFolder, seed: int) -> dict[str, Callable[[], Baseline]]:
    """Return makers of what the boosted ranker sees."""
    names = [name for name, entry in BASELINES.items() if entry.simple]
    store = folder.features()
    known = store.modalities if store else {}
    # `bundle_item` features know the bundles that training questions are asked about.
    names += [f"{SIMILARITY}:{modality}" for modality in known if modality != "bundle_item"]
    makers: dict[str, Callable[[], Baseline]] = {name: partial(make_baseline, name, folder, seed) for name in names}
    for name in ("lightgcn", "lightgcn_users"):  # fitted once per fold
        entry = BASELINES[name]
        makers[name] = partial(_find(entry.module, entry.maker), seed=seed, steps=STEPS_IN_RANKER)
    return makers


def _find(module: str, maker: str) -> Callable[..., Baseline]:
    return getattr(import_module(f"{__package__}.{module}"), maker)
