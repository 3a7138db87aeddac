"""The files of ranker, retriever and completer as a package.

The files `*_bundle_mllm.py` travel to the Hub with every saved model; the others do not, and those must not need them.
"""

from typing import TYPE_CHECKING

from bundle_mllm.lazy import lazy_names

if TYPE_CHECKING:
    from bundle_mllm.modeling.combination_bundle_mllm import BundleCombination as BundleCombination
    from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter as BundleCompleter
    from bundle_mllm.modeling.configuration_bundle_mllm import BundleMLLMConfig as BundleMLLMConfig
    from bundle_mllm.modeling.configuration_bundle_mllm import BundleMLLMOptionConfig as BundleMLLMOptionConfig
    from bundle_mllm.modeling.configuration_bundle_mllm import BundleRetrieverConfig as BundleRetrieverConfig
    from bundle_mllm.modeling.item_processing_bundle_mllm import BundleItemProcessor as BundleItemProcessor
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM as BundleMLLMForCausalLM
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMModel as BundleMLLMModel
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMPreTrainedModel as BundleMLLMPreTrainedModel
    from bundle_mllm.modeling.option_scoring_bundle_mllm import (
        BundleMLLMForOptionScoring as BundleMLLMForOptionScoring,
    )
    from bundle_mllm.modeling.pipeline_bundle_mllm import BundleCompletionPipeline as BundleCompletionPipeline
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor as BundleMLLMProcessor
    from bundle_mllm.modeling.retriever_bundle_mllm import BundleRetriever as BundleRetriever
    from bundle_mllm.modeling.tokenization_bundle_mllm import BundleMLLMTokenizerFast as BundleMLLMTokenizerFast
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)
