"""Reading the records of a sweep into one table."""

from nacme.records.load import load_sweep, unfilled_share

__all__ = ["load_sweep", "unfilled_share"]
