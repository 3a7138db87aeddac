"""Registration: the Auto classes, the pipeline task and PEFT know the model as soon as they are imported.

Registering a class takes the class, and importing it takes torch, transformers and whatever transformers imports
(torchvision, where it is installed). So nothing is imported here: a finder waits for the modules below, ours and
transformers', and registers when both of a pair are imported. Those imported before are registered at once.

Knows nothing about what the classes do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType


def _register_config(ours: ModuleType, theirs: ModuleType) -> None:
    for config in (ours.BundleMLLMConfig, ours.BundleRetrieverConfig):
        theirs.AutoConfig.register(config.model_type, config, exist_ok=True)
        config.register_for_auto_class()  # so that the code travels with saved folders; as below


def _register_models(ours: ModuleType, theirs: ModuleType) -> None:
    config, causal = ours.BundleMLLMConfig, ours.BundleMLLMForCausalLM
    theirs.AutoModel.register(config, ours.BundleMLLMModel, exist_ok=True)
    theirs.AutoModelForCausalLM.register(config, causal, exist_ok=True)
    theirs.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(config.model_type, causal.__name__)
    ours.BundleMLLMModel.register_for_auto_class("AutoModel")
    causal.register_for_auto_class("AutoModelForCausalLM")


def _register_retriever(ours: ModuleType, theirs: ModuleType) -> None:
    theirs.AutoModel.register(ours.BundleRetrieverConfig, ours.BundleRetriever, exist_ok=True)
    ours.BundleRetriever.register_for_auto_class("AutoModel")


def _register_tokenizer(ours: ModuleType, theirs: ModuleType) -> None:
    from bundle_mllm.modeling import BundleMLLMConfig

    tokenizer = ours.BundleMLLMTokenizerFast
    theirs.AutoTokenizer.register(BundleMLLMConfig, fast_tokenizer_class=tokenizer, exist_ok=True)
    tokenizer.register_for_auto_class()


def _register_processor(ours: ModuleType, theirs: ModuleType) -> None:
    from bundle_mllm.modeling import BundleMLLMConfig

    theirs.AutoProcessor.register(BundleMLLMConfig, ours.BundleMLLMProcessor, exist_ok=True)
    ours.BundleMLLMProcessor.register_for_auto_class()


def _register_item_processor(ours: ModuleType, theirs: ModuleType) -> None:
    from bundle_mllm.modeling import BundleRetrieverConfig

    theirs.AutoProcessor.register(BundleRetrieverConfig, ours.BundleItemProcessor, exist_ok=True)
    ours.BundleItemProcessor.register_for_auto_class()


def _register_pipeline(ours: ModuleType, theirs: ModuleType) -> None:
    models = theirs.AutoModelForCausalLM, theirs.AutoModel  # a retriever alone is no causal language model
    theirs.PIPELINE_REGISTRY.register_pipeline(
        "bundle-completion", pipeline_class=ours.BundleCompletionPipeline, pt_model=models
    )


def _register_lora(ours: ModuleType, theirs: ModuleType) -> None:
    theirs.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault("bundle_mllm", ours.LORA_TARGET_MODULES)


_PAIRS: dict[tuple[str, str], Callable[[ModuleType, ModuleType], None]] = {
    (f"bundle_mllm.modeling.{ours}", theirs): register
    for ours, theirs, register in (
        ("configuration_bundle_mllm", "transformers.models.auto.configuration_auto", _register_config),
        ("modeling_bundle_mllm", "transformers.models.auto.modeling_auto", _register_models),
        ("retriever_bundle_mllm", "transformers.models.auto.modeling_auto", _register_retriever),
        ("tokenization_bundle_mllm", "transformers.models.auto.tokenization_auto", _register_tokenizer),
        ("processing_bundle_mllm", "transformers.models.auto.processing_auto", _register_processor),
        ("item_processing_bundle_mllm", "transformers.models.auto.processing_auto", _register_item_processor),
        ("pipeline_bundle_mllm", "transformers.pipelines", _register_pipeline),
        ("lora", "peft.utils.constants", _register_lora),
    )
}
"""What is still to be registered: our module, transformers' (or PEFT's) module, and how."""

_imported: set[str] = set()
"""Which of the modules are imported to their end."""


class _Finder(MetaPathFinder):
    """Finds the modules above as Python does, and makes their import end with [`_finish`]."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not any(fullname in pair for pair in _PAIRS):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            vars(spec.loader)["exec_module"] = partial(_execute, spec.loader.exec_module)
        return spec


def install() -> None:
    """Register what is imported already, and wait for the rest."""
    sys.meta_path.insert(0, _Finder())
    for name in {name for pair in _PAIRS for name in pair if name in sys.modules}:
        _finish(name)


def _execute(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    try:
        execute(module)
    except (ImportError, OSError, RuntimeError):
        _check_builds()
        raise
    _finish(module.__name__)


def _finish(name: str) -> None:
    """Import the other module of each pair that a module is in, and register once both are imported to their end."""
    _imported.add(name)
    for pair in [pair for pair in _PAIRS if name in pair]:
        modules = [import_module(each) for each in pair]
        if _imported.issuperset(pair) and (register := _PAIRS.pop(pair, None)) is not None:
            register(*modules)


def _check_builds() -> None:
    """Explain a torchvision or torchaudio that cannot be imported: transformers fails for it and gives no reason."""
    for name in ("torchvision", "torchaudio"):
        if find_spec(name) is None:
            continue
        try:
            import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            raise ImportError(
                f"{name} {version(name)} does not match torch {version('torch')} ({error}), which breaks "
                f"transformers, too: install the {name} of the same release and the same build as torch (both for the "
                f"CPU, or both for one version of CUDA), or uninstall it (bundle-mllm needs torchvision for open_clip "
                "only, and torchaudio for nothing)."
            ) from error
