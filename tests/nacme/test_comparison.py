from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import nacme
from nacme.comparison import COMPARE_COLUMNS, compare_criteria
from nacme.errors import ConfigError


def sweep(n_runs: int = 5, n_steps: int = 8, seed: int = 0, **columns: Any) -> pd.DataFrame:
    """Runs in which nac_me follows test accuracy closely and val_acc loosely; none starts at step 0."""
    rng = np.random.default_rng(seed)
    test_acc = np.cumsum(rng.normal(0.02, 0.05, (n_runs, n_steps)), axis=1).ravel()
    df = pd.DataFrame(
        {
            "run": np.repeat([f"r{r}" for r in range(n_runs)], n_steps),
            "dataset": "Toy",
            "algorithm": "ERM",
            "test_env": 0,
            "n_test_envs": 1,
            "trial_seed": 0,
            "hparams_seed": np.repeat(np.arange(n_runs), n_steps),
            "step": np.tile(100 * np.arange(1, n_steps + 1), n_runs),
            "test_acc": test_acc,
            "nac_me": (test_acc + rng.normal(0, 0.02, len(test_acc))).round(2),
            "val_acc": (test_acc + rng.normal(0, 0.10, len(test_acc))).round(2),
            "val_loss": -test_acc,
        }
    )
    return df.assign(**columns)


def tau(x: Any, y: Any) -> float:
    return float(scipy.stats.kendalltau(x, y).statistic)


def rho(x: Any, y: Any) -> float:
    return float(scipy.stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize(("statistic", "reference"), [("kendall_tau", tau), ("spearman_rho", rho)])
def test_within_runs_against_a_plain_computation(statistic: Any, reference: Any) -> None:
    df = sweep()
    table = compare_criteria(df, "nac_me", "val_acc", "run", statistic)
    assert tuple(table.columns) == COMPARE_COLUMNS
    row = table.iloc[0]
    runs = [g for _, g in df.groupby("run")]
    d = np.array([reference(g.nac_me, g.test_acc) - reference(g.val_acc, g.test_acc) for g in runs])
    assert row.difference == pytest.approx(d.mean())
    assert row.value - row.baseline_value == pytest.approx(d.mean())
    flipped = [abs(np.mean(d * signs)) for signs in itertools.product([1, -1], repeat=5)]
    assert row.p_value == pytest.approx(np.mean(np.array(flipped) >= abs(d.mean()) - 1e-12))
    assert row.low < row.bca_low < row.difference < row.bca_high < row.high


@pytest.mark.parametrize(("statistic", "reference"), [("kendall_tau", tau), ("spearman_rho", rho)])
def test_across_runs_against_a_plain_computation(statistic: Any, reference: Any) -> None:
    df = sweep(n_runs=4)
    row = compare_criteria(df, "nac_me", "val_acc", "sweep", statistic).iloc[0]
    difference = reference(df.nac_me, df.test_acc) - reference(df.val_acc, df.test_acc)
    assert row.difference == pytest.approx(difference)
    a, b = df.nac_me.rank(), df.val_acc.rank()
    swapped = []
    for ways in itertools.product([False, True], repeat=4):
        turned = df["hparams_seed"].map(dict(enumerate(ways)))
        first, second = a.where(~turned, b), b.where(~turned, a)
        swapped.append(abs(reference(first, df.test_acc) - reference(second, df.test_acc)))
    assert row.p_value == pytest.approx(np.mean(np.array(swapped) >= abs(difference) - 1e-12))
    assert row.low < row.difference < row.high


@pytest.mark.parametrize("population", ["run", "sweep"])
def test_exchanging_the_criteria_turns_the_difference(population: Any) -> None:
    df = sweep(n_runs=8)
    one = compare_criteria(df, "nac_me", "val_acc", population).iloc[0]
    other = compare_criteria(df, "val_acc", "nac_me", population).iloc[0]
    assert other.difference == pytest.approx(-one.difference)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
    assert other.p_value == pytest.approx(one.p_value)


@pytest.mark.parametrize("population", ["run", "sweep"])
def test_a_criterion_compared_with_a_monotone_copy_does_not_differ(population: Any) -> None:
    row = compare_criteria(sweep(nac_me=lambda d: d.val_acc**3), "nac_me", "val_acc", population).iloc[0]
    assert (row.difference, row.low, row.high, row.p_value) == (0, 0, 0, 1)


def test_values_are_those_of_rank_correlation() -> None:
    df = sweep()
    correlation = nacme.rank_correlation(df, ["val_loss"])
    assert compare_criteria(df, "val_loss").iloc[0].value == correlation["kendall_tau"].item() == 1


def test_only_checkpoints_where_both_are_defined_take_part() -> None:
    df = sweep()
    df.loc[df.run == "r1", "nac_me"] = np.nan
    df.loc[df.run == "r2", "val_acc"] = 0.5
    for population in ("run", "sweep"):
        row = compare_criteria(df, "nac_me", "val_acc", population).iloc[0]  # type: ignore[arg-type]
        assert row.n_runs == (3 if population == "run" else 4)
        assert row.n_checkpoints == 8 * row.n_runs
    assert "undefined in 2 of 5 runs" in compare_criteria(df, "nac_me").attrs["notes"][1]


@pytest.mark.parametrize("population", ["run", "sweep"])
def test_one_run_and_constants_are_undefined_with_a_reason(population: Any) -> None:
    one = compare_criteria(sweep(n_runs=1), "nac_me", "val_acc", population)
    assert np.isfinite(one["difference"].item())
    assert one[["low", "high", "bca_low", "bca_high", "p_value", "p_holm"]].isna().all(axis=None)
    assert "one run" in one.attrs["notes"][1]
    constant = compare_criteria(sweep(test_acc=0.5), "nac_me", "val_acc", population)
    assert constant[["value", "difference", "low", "p_value"]].isna().all(axis=None)
    assert "undefined" in constant.attrs["notes"][1]


def test_p_values_are_adjusted_for_the_whole_table() -> None:
    df = pd.concat([sweep(n_runs=8), sweep(n_runs=8, seed=1, test_env=1, run="x" + sweep(n_runs=8)["run"])])
    table = compare_criteria(df, ["nac_me", "val_loss", "last"])
    assert len(table) == 6
    smallest = table["p_value"].min()
    assert table.loc[table["p_value"].idxmin(), "p_holm"] == pytest.approx(min(1, 6 * smallest))
    assert (table["p_holm"] >= table["p_value"]).all()


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="compared with itself"):
        compare_criteria(sweep(), ["nac_me", "val_acc"])
    with pytest.raises(ConfigError, match="statistic"):
        compare_criteria(sweep(), "nac_me", statistic="pearson")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_permutations"):
        compare_criteria(sweep(), "nac_me", n_permutations=0)
