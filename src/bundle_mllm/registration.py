"""Registration: the Auto classes, the pipeline task and PEFT know the models as soon as they are imported.

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

_MODELING = "bundle_mllm.modeling."
_CONFIGURATION = f"{_MODELING}configuration_bundle_mllm"
_RANKER, _OPTIONS, _RETRIEVER = "BundleMLLMConfig", "BundleMLLMOptionConfig", "BundleRetrieverConfig"


def _register_class(name: str, auto_class: str, config: str, ours: ModuleType, theirs: ModuleType) -> None:
    """Let an Auto class find a class by its configuration, and let the class's code travel with saved folders."""
    cls, config_class = getattr(ours, name), getattr(import_module(_CONFIGURATION), config)
    register = partial(getattr(theirs, auto_class).register, exist_ok=True)
    if auto_class == "AutoTokenizer":
        register(config_class, fast_tokenizer_class=cls)
    else:
        register(cls.model_type if cls is config_class else config_class, cls)
    if auto_class == "AutoModelForCausalLM":
        theirs.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(config_class.model_type, name)
    cls.register_for_auto_class(auto_class)


def _register_pipeline(ours: ModuleType, theirs: ModuleType) -> None:
    models = theirs.AutoModelForCausalLM, theirs.AutoModel  # a retriever alone is no causal language model
    pipeline = ours.BundleCompletionPipeline
    theirs.PIPELINE_REGISTRY.register_pipeline("bundle-completion", pipeline_class=pipeline, pt_model=models)


def _register_encoders(ours: ModuleType) -> None:
    """Let completers encode new items by what a model folder keeps, which takes this package."""

    def find_encoder(name: str, **files: object) -> object:
        return import_module("bundle_mllm.completion.new_items").find_item_encoder(name, **files)

    ours.BundleCompleter.find_encoder = staticmethod(find_encoder)


def _register_adapters(ours: ModuleType, theirs: ModuleType) -> None:
    """Let each method of PEFT adapt what it adapts in Llama, or LoRA's modules where those are queries and values."""
    for name, mapping in vars(theirs).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and "llama" in mapping:
            modules = ours.LORA_TARGET_MODULES if mapping["llama"] == ["q_proj", "v_proj"] else mapping["llama"]
            modules = ["language_model.norm" if module == "norm" else module for module in modules]
            for model_type in ("bundle_mllm", "bundle_mllm_options"):
                mapping.setdefault(model_type, modules)


_pending: list[tuple[tuple[str, ...], Callable[..., None]]] = [
    (
        (f"{_MODELING}{ours}_bundle_mllm", f"transformers.models.auto.{theirs}_auto"),
        partial(_register_class, *of),
    )
    for ours, theirs, *of in (
        ("configuration", "configuration", "BundleMLLMConfig", "AutoConfig", _RANKER),
        ("configuration", "configuration", "BundleRetrieverConfig", "AutoConfig", _RETRIEVER),
        ("configuration", "configuration", "BundleMLLMOptionConfig", "AutoConfig", _OPTIONS),
        ("modeling", "modeling", "BundleMLLMModel", "AutoModel", _RANKER),
        ("modeling", "modeling", "BundleMLLMForCausalLM", "AutoModelForCausalLM", _RANKER),
        ("option_scoring", "modeling", "BundleMLLMForOptionScoring", "AutoModel", _OPTIONS),
        ("retriever", "modeling", "BundleRetriever", "AutoModel", _RETRIEVER),
        ("tokenization", "tokenization", "BundleMLLMTokenizerFast", "AutoTokenizer", _RANKER),
        ("tokenization", "tokenization", "BundleMLLMTokenizerFast", "AutoTokenizer", _OPTIONS),
        ("processing", "processing", "BundleMLLMProcessor", "AutoProcessor", _RANKER),
        ("processing", "processing", "BundleMLLMProcessor", "AutoProcessor", _OPTIONS),
        ("item_processing", "processing", "BundleItemProcessor", "AutoProcessor", _RETRIEVER),
    )
]
_pending += [
    ((f"{_MODELING}pipeline_bundle_mllm", "transformers.pipelines"), _register_pipeline),
    ((f"{_MODELING}completion_bundle_mllm",), _register_encoders),
    (("bundle_mllm.lora", "peft.utils.constants"), _register_adapters),
]
"""What is still to be registered: our module, transformers' (or PEFT's) module if it takes one, and how."""
_imported: set[str] = set()
"""Which of the modules are imported to their end."""
_importing: list[str] = []
_ended: list[str] = []
"""Names of the modules that are being imported, and of those whose import has ended since no other was going on."""


class _Finder(MetaPathFinder):
    """Finds the modules above, and the files that ours import, as Python does; their import ends with [`_finish`]."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(_MODELING) and not any(fullname in modules for modules, _ in _pending):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            vars(spec.loader)["exec_module"] = partial(_execute, spec.loader.exec_module)
        return spec


def install() -> None:
    """Register what is imported already, and wait for the rest."""
    sys.meta_path.insert(0, _Finder())
    for name in {name for modules, _ in _pending for name in modules if name in sys.modules}:
        _finish(name)


def _execute(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Execute a module; register once no other is being imported, which the modules of a pair may need whole."""
    _importing.append(module.__name__)
    try:
        execute(module)
        _ended.append(module.__name__)
    except (ImportError, OSError, RuntimeError):
        _check_builds()
        raise
    finally:
        _importing.remove(module.__name__)
    while _ended and not _importing:
        _finish(_ended.pop(0))


def _finish(name: str) -> None:
    """Import the other module of each pair that a module is in, and register once all are imported to their end."""
    _imported.add(name)
    for entry in [entry for entry in _pending if name in entry[0]]:
        modules = [import_module(each) for each in entry[0]]
        if entry in _pending and _imported.issuperset(entry[0]):
            _pending.remove(entry)
            entry[1](*modules)


def _check_builds() -> None:
    """Explain a torchvision or torchaudio that cannot be imported: transformers fails for it and gives no reason."""
    for name in filter(find_spec, ("torchvision", "torchaudio")):
        try:
            import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            raise ImportError(
                f"{name} {version(name)} does not match torch {version('torch')} ({error}), which breaks "
                f"transformers, too: install the {name} of the same release and the same build as torch (both for the "
                f"CPU, or both for one version of CUDA), or uninstall it (bundle-mllm needs torchvision for open_clip "
                "only, and torchaudio for nothing)."
            ) from error
