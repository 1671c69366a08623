"""The report: one self-contained page of tables and figures."""

from nacme.report.write import write_report

__all__ = ["write_report"]
