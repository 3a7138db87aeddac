"""Random rules and catalogs, and a slow reference of their documented meaning that tries every completion."""

import itertools
import math

import numpy as np

CONDITIONS = {
    "in_stock == true": lambda item: item["in_stock"] is True,
    "not in_stock": lambda item: item["in_stock"] is not True,
    "price <= 6": lambda item: item["price"] is not None and item["price"] <= 6,
    'category != "hat"': lambda item: item["category"] != "hat",
    '"sale" in tags': lambda item: "sale" in (item["tags"] or []),
    "2 < price < 9 or price == null": lambda item: item["price"] is None or 2 < item["price"] < 9,
    'category in ["shoe", "bag"] and not (price >= 8)': lambda item: (
        item["category"] in ("shoe", "bag") and not (item["price"] is not None and item["price"] >= 8)
    ),
}
"""Conditions, and what they mean for one item."""


def random_items(rng, number):
    handles = rng.integers(0, max(2, number // 2), number)
    return [
        {
            "item_id": f"i{row}",
            "category": None if rng.random() < 0.15 else str(rng.choice(["shoe", "bag", "hat"])),
            "price": None if rng.random() < 0.1 else float(rng.integers(1, 40)) / 4,
            "in_stock": bool(rng.random() < 0.8),
            "tags": ["sale"] if rng.random() < 0.4 else None,
            "handle": None if rng.random() < 0.3 else f"h{handles[row]}",
            "margin": float(rng.normal()),
        }
        for row in range(number)
    ]


def random_rules(rng, items):
    def maybe(value, share=0.3):
        return {} if rng.random() > share else value

    ids = [item["item_id"] for item in items]
    together = 0.8 if rng.random() < 0.5 else 0.0  # limits whose joint effect is not that of each alone
    return {
        **maybe({"where": str(rng.choice(list(CONDITIONS)))}),
        **maybe({"allowed": [i for i in ids if rng.random() < 0.8]}),
        **maybe({"excluded": [str(rng.choice(ids))]}),
        **maybe({"max_per_category": int(rng.integers(1, 3))}, together or 0.5),
        **maybe(
            {"required_categories": rng.permutation(["shoe", "bag", "hat"])[: rng.integers(1, 3)].tolist()},
            together or 0.3,
        ),
        **maybe({"budget": float(rng.integers(4, 80)) / 4}, together or 0.5),
        **maybe({"variant_column": "handle"}, together or 0.4),
        **maybe({"max_similarity": float(rng.choice([0.2, 0.5, 0.8]))}, together or 0.3),
        **maybe({"boost": {"margin": 0.7, "in_stock": -0.4}}),
        **maybe({"promoted": '"sale" in tags', "promoted_share": float(rng.choice([0.25, 0.5, 1.0]))}),
        **maybe({"diversity": float(rng.choice([0.3, 0.9]))}),
    }


class Reference:
    """The documented meaning of rules, item by item, with every completion tried."""

    def __init__(self, items, rules, vectors, shown):
        self.items, self.rules, self.shown = items, rules, shown
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        first = {}
        for item in items:
            if item["handle"] is not None and item["category"] is not None:
                first.setdefault(item["handle"], item["category"])
        with_variants = rules.get("variant_column") and (rules.get("max_per_category") or self.required())
        self.categories = [
            first.get(item["handle"]) if with_variants and item["handle"] is not None else item["category"]
            for item in items
        ]

    def required(self):
        return self.rules.get("required_categories", [])

    def allowed(self):
        rules = self.rules
        kept = []
        for row, item in enumerate(self.items):
            price = item["price"]
            keeps = [
                "allowed" not in rules or item["item_id"] in rules["allowed"],
                item["item_id"] not in rules.get("excluded", []),
                "where" not in rules or CONDITIONS[rules["where"]](item),
                "budget" not in rules or (price is not None and price <= rules["budget"]),
            ]
            kept += [row] if all(keeps) else []
        return kept

    def handle(self, row):
        return self.items[row]["handle"] if "variant_column" in self.rules else None

    def keeps_limits(self, rows, required, quota):
        handles = [self.handle(row) for row in rows if self.handle(row) is not None]
        categories = [self.categories[row] for row in rows]
        counts = [categories.count(each) for each in set(categories) if each is not None]
        budget = self.rules.get("budget")
        return (
            len(handles) == len(set(handles))
            and all(count <= quota for count in counts)
            and set(required) <= set(categories)
            and (budget is None or math.fsum(self.items[row]["price"] for row in rows) <= budget)
        )

    def longest(self, chosen, rest, number, required, quota):
        """The largest length of a selection that keeps to the limits."""
        for length in range(number, len(chosen) - 1, -1):
            for more in itertools.combinations(rest, length - len(chosen)):
                if self.keeps_limits([*chosen, *more], required, quota):
                    return length
        return -1

    def select(self, scores, number):
        rules = self.rules
        quota = rules.get("max_per_category", math.inf)
        in_bundle = {self.handle(row) for row in self.shown} - {None}
        rest = [row for row in self.allowed() if row not in self.shown and self.handle(row) not in in_bundle]
        pool = [row for row in self.allowed() if row not in self.shown]
        low, high = (min(scores[pool]), max(scores[pool])) if pool else (0, 0)
        relevance = {row: 1.0 if high == low else (scores[row] - low) / (high - low) for row in pool}
        chosen = []
        while True:
            required = []
            for category in self.required():
                if self.longest(chosen, rest, number, [*required, category], quota) >= 0:
                    required.append(category)
            target = self.longest(chosen, rest, number, required, quota)
            can = [
                row
                for row in rest
                if len(chosen) < target
                and self.longest([*chosen, row], [r for r in rest if r != row], target, required, quota) == target
            ]
            if not can:
                return chosen
            share = rules.get("promoted_share", 0)
            promoted = [row for row in can if "sale" in (self.items[row]["tags"] or [])]
            have = sum("sale" in (self.items[row]["tags"] or []) for row in chosen)
            if have < math.floor(share * (len(chosen) + 1) + 1e-9) and promoted:
                can = promoted
            diversity = rules.get("diversity", 0)

            def value(row, d=diversity):
                if d == 0:
                    return scores[row]
                nearest = max((float(self.vectors[row] @ self.vectors[other]) for other in chosen), default=0.0)
                return (1 - d) * relevance[row] - d * nearest

            best = max(can, key=value)
            rest.remove(best)
            near = [float(self.vectors[best] @ self.vectors[other]) for other in (*self.shown, *chosen)]
            if max(near, default=-1) <= rules.get("max_similarity", math.inf):
                chosen.append(best)


def boosted(items, rules, scores):
    if "boost" not in rules:
        return scores
    margins = np.array([item["margin"] for item in items])
    stock = np.array([item["in_stock"] is True for item in items])
    return scores + 0.7 * (margins - margins.mean()) / margins.std() - 0.4 * stock
