"""A published data set as a benchmark: baselines and models on the same questions, in one table."""

from typing import TYPE_CHECKING

from bundle_mllm.lazy import lazy_names

if TYPE_CHECKING:
    from bundle_mllm.benchmark.run import run_benchmark as run_benchmark
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)
