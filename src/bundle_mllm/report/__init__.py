"""The paper's figures on a data set of one's own: measured, drawn, and kept as numbers."""

from bundle_mllm.report.build import REPORT, build_report

__all__ = ["REPORT", "build_report"]
