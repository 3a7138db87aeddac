"""The model's files as a package: importing it makes the Auto classes, the pipeline task and PEFT know the model.

The files beside this one travel to the Hub with every saved model; this one does not, and they must not need it.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import is_peft_available

from .configuration_bundle_mllm import BundleMLLMConfig
from .modeling_bundle_mllm import BundleMLLMForCausalLM, BundleMLLMModel, BundleMLLMPreTrainedModel
from .pipeline_bundle_mllm import BundleCompletionPipeline
from .processing_bundle_mllm import BundleMLLMProcessor
from .tokenization_bundle_mllm import BundleMLLMTokenizerFast

LORA_TARGET_MODULES = ["q_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv"]
"""What LoRA adapts unless told otherwise: queries and values (official code), by the names backbones give them."""


def _register() -> None:
    model_type = BundleMLLMConfig.model_type
    AutoConfig.register(model_type, BundleMLLMConfig, exist_ok=True)
    AutoModel.register(BundleMLLMConfig, BundleMLLMModel, exist_ok=True)
    AutoModelForCausalLM.register(BundleMLLMConfig, BundleMLLMForCausalLM, exist_ok=True)
    AutoTokenizer.register(BundleMLLMConfig, fast_tokenizer_class=BundleMLLMTokenizerFast, exist_ok=True)
    AutoProcessor.register(BundleMLLMConfig, BundleMLLMProcessor, exist_ok=True)
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(model_type, BundleMLLMForCausalLM.__name__)
    PIPELINE_REGISTRY.register_pipeline(
        "bundle-completion", pipeline_class=BundleCompletionPipeline, pt_model=AutoModelForCausalLM
    )
    # The code travels with everything that is saved.
    BundleMLLMConfig.register_for_auto_class()
    BundleMLLMModel.register_for_auto_class("AutoModel")
    BundleMLLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    BundleMLLMTokenizerFast.register_for_auto_class()
    BundleMLLMProcessor.register_for_auto_class()
    if is_peft_available():
        from peft.utils import constants

        constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault(model_type, LORA_TARGET_MODULES)


_register()

__all__ = [
    "LORA_TARGET_MODULES",
    "BundleCompletionPipeline",
    "BundleMLLMConfig",
    "BundleMLLMForCausalLM",
    "BundleMLLMModel",
    "BundleMLLMPreTrainedModel",
    "BundleMLLMProcessor",
    "BundleMLLMTokenizerFast",
]
