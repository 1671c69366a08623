from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import nacme
from nacme.errors import ConfigError
from nacme.study.comparison import COMPARE_COLUMNS, compare_criteria


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
    assert row.low < row.difference < row.high


@pytest.mark.parametrize(("statistic", "reference"), [("kendall_tau", tau), ("spearman_rho", rho)])
def test_across_runs_against_a_plain_computation(statistic: Any, reference: Any) -> None:
    df = sweep(n_runs=4)
    row = compare_criteria(df, "nac_me", "val_acc", "sweep", statistic).iloc[0]
    difference = reference(df.nac_me, df.test_acc) - reference(df.val_acc, df.test_acc)
    assert row.difference == pytest.approx(difference)
    # Two pairs of runs: the p-value is of swapping neither, one or both.
    assert row.p_value in (0.5, 1)
    assert row.low < row.difference < row.high


@pytest.mark.parametrize("n_runs", [4, 7, 12])
def test_across_runs_the_p_value_is_that_of_swapping_pairs_of_runs(n_runs: int) -> None:
    # One criterion is right in every run and the other wrong, so that all pairs of runs agree.
    df = sweep(n_runs=n_runs).assign(nac_me=lambda d: d.test_acc, val_acc=lambda d: -d.test_acc)
    row = compare_criteria(df, "nac_me", "val_acc", "sweep").iloc[0]
    assert row.p_value == 2 / 2 ** (n_runs // 2)


def exchangeable(rng: np.random.Generator, n_runs: int, n_steps: int = 5) -> pd.DataFrame:
    """In each run one criterion is good and one bad; which is which is drawn."""
    test_acc = rng.normal(size=(n_runs, n_steps)) + rng.normal(size=(n_runs, 1))
    good, bad = (sign * test_acc + 0.3 * rng.normal(size=test_acc.shape) for sign in (1, -1))
    swapped = rng.random((n_runs, 1)) < 0.5
    columns = {
        "test_acc": test_acc.ravel(),
        "nac_me": np.where(swapped, good, bad + 3).ravel(),
        "val_acc": np.where(swapped, bad + 3, good).ravel(),
    }
    return sweep(n_runs=n_runs, n_steps=n_steps, **columns)


@pytest.mark.parametrize("n_runs", [4, 8])
def test_across_runs_the_p_value_is_valid_for_exchangeable_criteria(n_runs: int) -> None:
    p = [
        compare_criteria(
            exchangeable(np.random.default_rng([7, i]), n_runs), "nac_me", "val_acc", "sweep", n_boot=1
        )["p_value"].item()
        for i in range(200)
    ]
    for level in np.unique(p):
        assert np.mean(p <= level + 1e-9) <= level + 3 * np.sqrt(level * (1 - level) / 200)


def test_all_test_envs_together_are_the_mean_over_runs_or_over_test_envs() -> None:
    envs = [sweep(n_runs=n, seed=n, test_env=n, run=f"{n} " + sweep(n_runs=n)["run"]) for n in (6, 9)]
    df = pd.concat(envs, ignore_index=True)
    for population, weights in (("run", [6, 9]), ("sweep", [1, 1])):
        apart = compare_criteria(df, "nac_me", "val_acc", population)  # type: ignore[arg-type]
        together = compare_criteria(df, "nac_me", "val_acc", population, pool_test_envs=True)  # type: ignore[arg-type]
        row = together.iloc[0]
        assert (len(together), row.test_env, row.n_test_envs, row.n_runs) == (1, "all", 2, 15)
        for column in ("value", "baseline_value", "difference"):
            assert row[column] == pytest.approx(np.average(apart[column], weights=weights))
        assert row.high - row.low < (apart["high"] - apart["low"]).max()
        assert row.p_value <= apart["p_value"].min()
    assert row.p_value >= 2 / 2 ** (3 + 4)


def test_a_margin_asks_for_equivalence() -> None:
    df = sweep(n_runs=10)
    assert compare_criteria(df, "nac_me").iloc[0].equivalent is None
    assert compare_criteria(df, "nac_me", margin=2).iloc[0].equivalent
    assert not compare_criteria(df, "nac_me", margin=0.01).iloc[0].equivalent
    few = compare_criteria(sweep(n_runs=3), "nac_me", margin=2).iloc[0]
    assert few.equivalent is None
    assert few.reason == "3 runs, an interval needs 4"
    with pytest.raises(ConfigError, match="margin must be positive"):
        compare_criteria(df, "nac_me", margin=0)


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
    assert one[["low", "high", "p_value", "p_holm"]].isna().all(axis=None)
    assert one["reason"].item() == "one run"
    assert "one run" in one.attrs["notes"][1]
    constant = compare_criteria(sweep(test_acc=0.5), "nac_me", "val_acc", population)
    assert constant[["value", "difference", "low", "p_value"]].isna().all(axis=None)
    assert constant["reason"].item() in ("constant test accuracy", "no run where both are defined")
    assert constant["reason"].item() in constant.attrs["notes"][1] or population == "run"


def test_the_primary_comparison_is_adjusted_by_itself_and_the_others_among_themselves() -> None:
    df = pd.concat([sweep(n_runs=8), sweep(n_runs=8, seed=1, test_env=1, run="x" + sweep(n_runs=8)["run"])])
    table = compare_criteria(df, ["nac_me", "val_loss", "last"])
    assert table["primary"].tolist() == [True, False, False] * 2
    for family, count in ((table[table["primary"]], 2), (table[~table["primary"]], 4)):
        smallest = family["p_value"].min()
        assert family.loc[family["p_value"].idxmin(), "p_holm"] == pytest.approx(min(1, count * smallest))
        assert (family["p_holm"] >= family["p_value"]).all()
    alone = compare_criteria(sweep(n_runs=8), ["nac_me", "val_loss", "last"]).iloc[0]
    assert alone.p_holm == alone.p_value
    for other in (
        compare_criteria(df, "nac_me", "last"),
        compare_criteria(df, "nac_me", "val_acc", "sweep"),
        compare_criteria(df, "nac_me", statistic="spearman_rho"),
    ):
        assert not other["primary"].any()


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="compared with itself"):
        compare_criteria(sweep(), ["nac_me", "val_acc"])
    with pytest.raises(ConfigError, match="statistic"):
        compare_criteria(sweep(), "nac_me", statistic="pearson")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_permutations"):
        compare_criteria(sweep(), "nac_me", n_permutations=0)
