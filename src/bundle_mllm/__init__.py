"""Product bundling with multimodal LLMs (Bundle-MLLM, arXiv 2407.11712) on the Hugging Face stack.

From a dataset folder to answers (every path is a text or a `Path`; results show themselves in a notebook):

    bundle_mllm.encode_folder("DATA")                            # pictures, sounds, texts, users -> features
    bundle_mllm.train(data="DATA", output_dir="OUT")             # stage_two={"num_questions": 2_000}, ...
    bundle_mllm.evaluate("OUT", "DATA", "questions.jsonl")
    completer = bundle_mllm.load_ruled_completer("OUT", items="DATA")
    [answers] = completer.complete([{"partial": ["ID", "ID"]}], top_k=5, explain=True)
    transformers.pipeline("bundle-completion", model="OUT")      # the same without rules

`help(bundle_mllm.train)` and so on explain each of

    data        import_dataset DatasetFolder ItemCatalog BundleSplits Question load_questions make_questions
                save_questions sample_training_questions encode_folder publish_dataset
    training    train default_run RunConfig RetrieverSettings StageOneConfig StageTwoConfig add_retriever calibrate
    answers     load_ruled_completer RuledCompleter Rules Answers ItemColumns complete_bulk update_catalog forget
                BundleCompletionPipeline
    quality     evaluate evaluate_baselines compare_metrics build_report run_benchmark
                score_questions as_scored compute_metrics
    models      load_completer load_ranker save_model BundleCompleter BundleCombination
                BundleRetriever BundleRetrieverConfig BundleMLLMForCausalLM BundleMLLMModel BundleMLLMConfig
                BundleMLLMForOptionScoring BundleMLLMOptionConfig
                BundleMLLMProcessor BundleMLLMTokenizerFast BundleItemProcessor
    elsewhere   publish verify_repository export_stock convert_checkpoint
    errors      BundleMLLMError

and `bundle-mllm --help` the commands. Importing the package lets the Auto classes, the pipeline task and PEFT know the
models; everything else, torch and transformers, too, is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bundle_mllm.lazy import lazy_names as _lazy_names
from bundle_mllm.registration import install as _install

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from bundle_mllm.baselines import evaluate_baselines as evaluate_baselines
    from bundle_mllm.benchmark import run_benchmark as run_benchmark
    from bundle_mllm.completion.bulk import complete_bulk as complete_bulk
    from bundle_mllm.completion.catalog import update_catalog as update_catalog
    from bundle_mllm.completion.columns import ItemColumns as ItemColumns
    from bundle_mllm.completion.complete import Answers as Answers
    from bundle_mllm.completion.complete import RuledCompleter as RuledCompleter
    from bundle_mllm.completion.complete import load_ruled_completer as load_ruled_completer
    from bundle_mllm.completion.forget import forget as forget
    from bundle_mllm.completion.rules import Rules as Rules
    from bundle_mllm.data import BundleSplits as BundleSplits
    from bundle_mllm.data import DatasetFolder as DatasetFolder
    from bundle_mllm.data import ItemCatalog as ItemCatalog
    from bundle_mllm.data import Question as Question
    from bundle_mllm.data import load_questions as load_questions
    from bundle_mllm.data import make_questions as make_questions
    from bundle_mllm.data import sample_training_questions as sample_training_questions
    from bundle_mllm.data import save_questions as save_questions
    from bundle_mllm.encoders.encode import encode_folder as encode_folder
    from bundle_mllm.errors import BundleMLLMError as BundleMLLMError
    from bundle_mllm.evaluation.evaluate import evaluate as evaluate
    from bundle_mllm.evaluation.metrics import as_scored as as_scored
    from bundle_mllm.evaluation.metrics import compute_metrics as compute_metrics
    from bundle_mllm.evaluation.results import compare_metrics as compare_metrics
    from bundle_mllm.evaluation.scoring import score_questions as score_questions
    from bundle_mllm.hub.dataset import publish_dataset as publish_dataset
    from bundle_mllm.hub.publish import publish as publish
    from bundle_mllm.hub.verify import verify_repository as verify_repository
    from bundle_mllm.importers.dispatch import import_dataset as import_dataset
    from bundle_mllm.interop.convert import convert_checkpoint as convert_checkpoint
    from bundle_mllm.interop.export import export_stock as export_stock
    from bundle_mllm.model_folder import load_completer as load_completer
    from bundle_mllm.model_folder import load_ranker as load_ranker
    from bundle_mllm.model_folder import save_model as save_model
    from bundle_mllm.modeling import BundleCombination as BundleCombination
    from bundle_mllm.modeling import BundleCompleter as BundleCompleter
    from bundle_mllm.modeling import BundleCompletionPipeline as BundleCompletionPipeline
    from bundle_mllm.modeling import BundleItemProcessor as BundleItemProcessor
    from bundle_mllm.modeling import BundleMLLMConfig as BundleMLLMConfig
    from bundle_mllm.modeling import BundleMLLMForCausalLM as BundleMLLMForCausalLM
    from bundle_mllm.modeling import BundleMLLMForOptionScoring as BundleMLLMForOptionScoring
    from bundle_mllm.modeling import BundleMLLMModel as BundleMLLMModel
    from bundle_mllm.modeling import BundleMLLMOptionConfig as BundleMLLMOptionConfig
    from bundle_mllm.modeling import BundleMLLMProcessor as BundleMLLMProcessor
    from bundle_mllm.modeling import BundleMLLMTokenizerFast as BundleMLLMTokenizerFast
    from bundle_mllm.modeling import BundleRetriever as BundleRetriever
    from bundle_mllm.modeling import BundleRetrieverConfig as BundleRetrieverConfig
    from bundle_mllm.report import build_report as build_report
    from bundle_mllm.training.add_retriever import add_retriever as add_retriever
    from bundle_mllm.training.calibrate import calibrate as calibrate
    from bundle_mllm.training.config import RetrieverSettings as RetrieverSettings
    from bundle_mllm.training.config import RunConfig as RunConfig
    from bundle_mllm.training.config import StageOneConfig as StageOneConfig
    from bundle_mllm.training.config import StageTwoConfig as StageTwoConfig
    from bundle_mllm.training.config import default_run as default_run
    from bundle_mllm.training.run import train as train
else:
    __getattr__, __dir__ = _lazy_names(__name__, __file__)

_install()
