"""Selection under rules: identical to a slow reference that tries every completion, on random rules and catalogs."""

import itertools

import numpy as np
import pytest
from slow_rules import Reference, boosted, random_items, random_rules

from bundle_mllm.completion.columns import ItemColumns
from bundle_mllm.completion.rules import Rules
from bundle_mllm.completion.selection import select


@pytest.mark.parametrize("block", range(10))
def test_random_rules_select_what_the_slow_reference_selects(block):
    """500 rule sets on as many catalogs."""
    tried = 0
    for seed in itertools.count(10_000 * block):
        rng = np.random.default_rng(seed)
        items = random_items(rng, int(rng.integers(5, 10)))
        values = random_rules(rng, items)
        vectors, scores = rng.normal(size=(len(items), 3)), rng.normal(size=len(items))
        shown = rng.choice(len(items), size=int(rng.integers(1, 3)), replace=False).tolist()
        number = int(rng.integers(len(values.get("required_categories", [])) or 1, 5))
        try:
            columns = ItemColumns.from_records(items, [item["item_id"] for item in items])
            applied = Rules.from_dict(values).apply([item["item_id"] for item in items], columns)
        except ValueError:
            continue  # refused: tested apart
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        values_of = scores if applied.offsets is None else scores + applied.offsets
        open_scores = np.where(applied.allowed, values_of, -np.inf)
        open_scores[shown] = -np.inf
        found = select(
            open_scores, applied.limits, number, shown=shown, similarity=lambda a, b, unit=unit: unit[a] @ unit[b].T
        )
        reference = Reference(items, values, vectors, shown)
        assert np.flatnonzero(applied.allowed).tolist() == reference.allowed(), (seed, values)
        expected = reference.select(boosted(items, values, scores), number)
        assert found.rows == expected, (seed, values)
        tried += 1
        if tried == 50:
            return
