"""Turn data of other formats into dataset folders: each importer is a function `(source, output_dir)`.

Knows nothing about prompts, models or how the folder is used.
"""

from typing import TYPE_CHECKING

from bundle_mllm.lazy import lazy_names

if TYPE_CHECKING:
    from bundle_mllm.importers.bundlerec import import_bundlerec as import_bundlerec
    from bundle_mllm.importers.dispatch import FORMATS as FORMATS
    from bundle_mllm.importers.dispatch import import_dataset as import_dataset
    from bundle_mllm.importers.dispatch import parse_pairs as parse_pairs
    from bundle_mllm.importers.huggingface import import_huggingface as import_huggingface
    from bundle_mllm.importers.official import OfficialData as OfficialData
    from bundle_mllm.importers.official import OfficialItems as OfficialItems
    from bundle_mllm.importers.official import import_official as import_official
    from bundle_mllm.importers.official import read_official as read_official
    from bundle_mllm.importers.official import read_official_items as read_official_items
    from bundle_mllm.importers.polyvore import import_polyvore as import_polyvore
    from bundle_mllm.importers.summary import ImportNote as ImportNote
    from bundle_mllm.importers.summary import ImportSummary as ImportSummary
    from bundle_mllm.importers.tabular import import_orders as import_orders
    from bundle_mllm.importers.tabular import import_shopify as import_shopify
    from bundle_mllm.importers.tabular import import_tabular as import_tabular
    from bundle_mllm.importers.tabular import import_woocommerce as import_woocommerce
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)
