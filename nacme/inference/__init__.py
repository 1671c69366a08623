"""Rank statistics, resampling of runs, and the rules of verdicts."""
