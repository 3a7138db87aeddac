"""The paper's figures on a data set of one's own: measured, drawn, and kept as numbers."""

from typing import TYPE_CHECKING

from bundle_mllm.lazy import lazy_names

if TYPE_CHECKING:
    from bundle_mllm.report.build import REPORT as REPORT
    from bundle_mllm.report.build import build_report as build_report
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)
