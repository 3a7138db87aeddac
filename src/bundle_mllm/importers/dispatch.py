"""Import a data set by the name of its format.

Knows nothing about the layouts of the formats.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.bundlerec import import_bundlerec
from bundle_mllm.importers.huggingface import import_huggingface
from bundle_mllm.importers.official import import_official
from bundle_mllm.importers.polyvore import import_polyvore
from bundle_mllm.importers.settings import ImportSettings
from bundle_mllm.importers.summary import ImportSummary
from bundle_mllm.importers.tabular import import_orders, import_shopify, import_tabular, import_woocommerce
from bundle_mllm.settings import configured_by

FORMATS: Mapping[str, Callable[..., ImportSummary]] = {
    "official": import_official,
    "bundlerec": import_bundlerec,
    "polyvore": import_polyvore,
    "tabular": import_tabular,
    "huggingface": import_huggingface,
    "shopify": import_shopify,
    "woocommerce": import_woocommerce,
    "orders": import_orders,
}


@configured_by(ImportSettings)
def import_dataset(settings: ImportSettings) -> ImportSummary:
    """Import a data set.

    Args:
        settings: Those that differ from their defaults are arguments of the format's own function.

    Returns:
        What was written, and what was left out or repaired.

    Raises:
        BundleMLLMError: If the format has no such option, or for what its function refuses.
    """
    format = settings.format
    options = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name not in ("format", "source", "output_dir") and getattr(settings, field.name) != field.default
    }
    for name in ("columns", "tables"):
        if isinstance(pairs := options.get(name), tuple):
            options[name] = parse_pairs(name, pairs)
    for name in options:
        if name not in _options(format):
            having = ", ".join(other for other in FORMATS if name in _options(other)) or "none"
            raise BundleMLLMError(f"The format {format} has no option `{name}` (formats that have it: {having}).")
    return FORMATS[format](settings.source, settings.output_dir, **options)


def parse_pairs(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """Read `NAME=VALUE` texts, as the command line has them; the message of an error calls them `option`.

    Raises:
        BundleMLLMError: If a text has no `=`, or a name comes twice.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value) or name in values:
            raise BundleMLLMError(f"{option} has {pair!r}: write NAME=VALUE, each name once, such as item_id=sku.")
        values[name] = value
    return values


def _options(format: str) -> set[str]:
    return set(inspect.signature(FORMATS[format]).parameters) - {"source", "output_dir"}
