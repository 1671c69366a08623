"""Intervals hold the truth as often as docs/criteria.md says, and verdicts claim nothing of noise."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from analysis.simulations import intervals, verdicts
from analysis.simulations.runs import NULLS, VALUES


def error(share: float, count: int) -> float:
    """Three standard errors of a simulated share."""
    return 3 * float(np.sqrt(share * (1 - share) / count))


@pytest.mark.long
@pytest.mark.parametrize("kind", VALUES)
def test_intervals_of_means_hold_the_truth_at_every_number_of_runs(kind: str) -> None:
    least = 0.93 if kind == "normal" else 0.90
    for n_runs in intervals.RUNS:
        found = intervals.of_means(kind, n_runs, 4000, seed=1)
        if n_runs < 4:
            assert np.isnan(found["covered"])
        else:
            assert found["covered"] >= least - error(least, 4000), n_runs
    if kind != "lognormal":  # where the interval before held the truth too seldom still
        assert found["width"] <= 1.1


@pytest.mark.long
@pytest.mark.parametrize("draw", intervals.SWEEPS, ids=lambda draw: draw.__name__)
def test_intervals_of_a_pooled_tau_hold_the_truth(draw) -> None:
    for n_runs in (4, 6, 12, 36):
        assert intervals.of_pooled_tau(draw, n_runs, 300, seed=1)["covered"] >= 0.93 - error(0.93, 300), n_runs


@pytest.mark.long
@pytest.mark.parametrize("population", ["run", "sweep"])
@pytest.mark.parametrize("null", NULLS)
def test_verdicts_claim_no_difference_of_noise_and_p_is_valid(null: str, population) -> None:
    for n_runs in (2, 3, 4, 6, 7, 13, 24, 40):
        count = 600 if population == "run" else 150
        table = verdicts.compared(null, population, n_runs, count, seed=1)
        assert verdicts.claimed(table) <= 0.05 + error(0.05, count), n_runs
        for level, share in verdicts.levels(table):
            assert share <= level + error(level, count) + 1 / count, (n_runs, level)


@pytest.mark.long
def test_verdicts_of_choices_claim_no_difference_of_noise() -> None:
    for n_envs in (2, 6, 13, 40):
        assert verdicts.claimed_of_choices("noise", n_envs, 200, seed=1) <= 0.05 + error(0.05, 200), n_envs


def test_a_difference_that_is_there_is_told() -> None:
    table = verdicts.compared("followers", "run", 8, 20)
    better = verdicts.sweeps(np.random.default_rng(0), "followers", 20, 8).assign(nac_me=lambda d: d["test_acc"])
    told = verdicts.compare_criteria(better, "nac_me", "val_acc")
    assert verdicts.claimed(table) < 0.3
    assert verdicts.claimed(told) == 1


def test_tables_are_laid_out_with_the_coverage_before() -> None:
    found = [intervals.of_means(kind, 3, 250) for kind in VALUES]
    lines = intervals.table(list(VALUES), [(3, found)]).splitlines()
    assert lines[0] == "| runs | normal | exponential | lognormal | t3 | tau |"
    assert lines[2].startswith("| 3 | none (7")
