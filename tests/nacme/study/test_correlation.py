from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import nacme
from nacme.errors import ConfigError, CriterionError
from nacme.study.correlation import CORRELATE_COLUMNS


def sweep(n_runs: int = 5, n_steps: int = 8, seed: int = 0, **columns: Any) -> pd.DataFrame:
    """Runs whose accuracy and criteria drift with the step, each in its own way."""
    rng = np.random.default_rng(seed)
    frames = []
    for r in range(n_runs):
        test_acc = 0.3 + np.cumsum(rng.normal(0.02, 0.05, n_steps))
        frames.append(
            pd.DataFrame(
                {
                    "run": f"r{r}",
                    "dataset": "Toy",
                    "algorithm": "ERM",
                    "test_env": 0,
                    "test_envs": "0",
                    "n_test_envs": 1,
                    "n_envs": 3,
                    "trial_seed": 0,
                    "hparams_seed": r,
                    "seed": r,
                    "step": 100 * np.arange(n_steps),
                    "test_acc": test_acc,
                    "test_out_acc": test_acc,
                    "val_acc": test_acc + rng.normal(0, 0.05, n_steps),
                    "checkpoint": None,
                    "done": True,
                    "nac_me": test_acc.round(1) + rng.normal(0, 0.02, n_steps).round(2),
                    "val_loss": -test_acc + rng.normal(0, 0.05, n_steps),
                }
            )
        )
    df = pd.concat(frames, ignore_index=True).assign(**columns)
    df.attrs.update(path="some/sweep", exclusions=[])
    return df


def one(df: pd.DataFrame, criterion: str = "nac_me", **options: Any) -> pd.Series:
    table = nacme.rank_correlation(df, [criterion], **options)
    assert tuple(table.columns) == CORRELATE_COLUMNS
    assert len(table) == 1
    return table.iloc[0]


def test_within_runs_it_is_the_mean_of_the_runs_statistics() -> None:
    df = sweep()
    row = one(df)
    kept = df[df.step > 0]
    taus = [scipy.stats.kendalltau(g.nac_me, g.test_acc).statistic for _, g in kept.groupby("run")]
    rhos = [scipy.stats.spearmanr(g.nac_me, g.test_acc).statistic for _, g in kept.groupby("run")]
    assert row.kendall_tau == pytest.approx(np.mean(taus))
    assert row.spearman_rho == pytest.approx(np.mean(rhos))
    assert (row.n_runs, row.n_checkpoints) == (5, 35)
    assert row.kendall_low < row.kendall_tau < row.kendall_high


def test_across_runs_it_is_one_statistic_of_all_checkpoints() -> None:
    df = sweep()
    row = one(df, population="sweep")
    kept = df[df.step > 0]
    assert row.kendall_tau == pytest.approx(scipy.stats.kendalltau(kept.nac_me, kept.test_acc).statistic)
    assert row.spearman_rho == pytest.approx(scipy.stats.spearmanr(kept.nac_me, kept.test_acc).statistic)
    assert (row.n_runs, row.n_checkpoints) == (5, 35)
    assert row.spearman_low < row.spearman_rho < row.spearman_high


@pytest.mark.parametrize("population", ["run", "sweep"])
def test_step_0_is_left_out_unless_asked_for_and_said(population: str) -> None:
    df = sweep()
    without = nacme.rank_correlation(df, ["nac_me"], population)
    assert without["n_checkpoints"].item() == 35
    assert "step 0 is left out: 5 of 40" in without.attrs["notes"][0]
    included = nacme.rank_correlation(df, ["nac_me"], population, include_step0=True)
    assert included["n_checkpoints"].item() == 40
    assert "step 0 counts: 5 of 40" in included.attrs["notes"][0]


def test_a_criterion_where_lower_is_better_is_turned() -> None:
    df = sweep().assign(val_loss=lambda d: -d.test_acc)
    assert one(df, "val_loss").kendall_tau == pytest.approx(1)


def test_last_is_the_step() -> None:
    df = sweep()
    taus = [scipy.stats.kendalltau(g.step, g.test_acc).statistic for _, g in df[df.step > 0].groupby("run")]
    row = one(df, "last")
    assert row.kendall_tau == pytest.approx(np.mean(taus))
    assert np.isnan(row.partial_spearman_step)


NUMBERS = ["kendall_tau", "kendall_low", "kendall_high", "spearman_rho", "spearman_low", "spearman_high"]


@pytest.mark.parametrize("population", ["run", "sweep"])
@pytest.mark.parametrize(
    ("columns", "reason"),
    [({"nac_me": 0.3}, "constant criterion"), ({"test_acc": 0.5}, "constant test accuracy")],
)
def test_what_is_constant_has_no_correlation_and_says_why(
    population: str, columns: dict[str, float], reason: str
) -> None:
    table = nacme.rank_correlation(sweep(**columns), ["nac_me"], population)
    assert table[[*NUMBERS, "weighted_tau", "partial_spearman_step"]].isna().all(axis=None)
    assert table["reason"].item() == reason
    assert any(reason in note for note in table.attrs["notes"])


def test_runs_without_a_defined_value_are_left_out_and_counted() -> None:
    df = sweep()
    df.loc[df.run == "r1", "nac_me"] = 0.2
    df.loc[df.run == "r3", "nac_me"] = np.nan
    df.loc[df.run == "r4", "nac_me"] = np.inf
    table = nacme.rank_correlation(df, ["nac_me", "val_acc"])
    row, other = table.iloc[0], table.iloc[1]
    assert (row.n_runs, row.n_checkpoints) == (2, 14)
    assert (other.n_runs, other.n_checkpoints) == (5, 35)
    notes = " ".join(table.attrs["notes"])
    assert "undefined in 3 of 5 runs (constant criterion: 1, no checkpoint: 2)" in notes
    assert "undefined at 14 of 35 checkpoints" in notes


@pytest.mark.parametrize("population", ["run", "sweep"])
def test_one_run_has_an_estimate_but_no_interval(population: str) -> None:
    table = nacme.rank_correlation(sweep(n_runs=1), ["nac_me"], population)
    assert np.isfinite(table["kendall_tau"].item())
    assert table[["kendall_low", "kendall_high", "spearman_low", "spearman_high"]].isna().all(axis=None)
    assert table["reason"].item() == "one run"
    assert any("one run" in note for note in table.attrs["notes"])
    three = nacme.rank_correlation(sweep(n_runs=3), ["nac_me"], population)
    assert three[["kendall_low", "kendall_high", "spearman_low", "spearman_high"]].isna().all(axis=None)
    assert three["reason"].item() == "3 runs, an interval needs 4"
    assert nacme.rank_correlation(sweep(n_runs=4), ["nac_me"], population)["reason"].item() is None


@pytest.mark.parametrize("population", ["run", "sweep"])
def test_one_checkpoint_is_undefined(population: str) -> None:
    df = sweep(n_runs=1, n_steps=2)
    table = nacme.rank_correlation(df, ["nac_me"], population)
    assert np.isnan(table["kendall_tau"].item())
    assert any("one checkpoint" in note for note in table.attrs["notes"])
    only_step0 = nacme.rank_correlation(df[df.step == 0], ["nac_me"], population)
    assert only_step0["n_checkpoints"].item() == 0
    assert any("no checkpoint" in note for note in only_step0.attrs["notes"])


@pytest.mark.parametrize("population", ["run", "sweep"])
def test_the_seed_decides_the_interval_and_other_cells_do_not(population: str) -> None:
    alone = sweep(20)
    both = pd.concat([alone, sweep(20, seed=1, test_env=1)], ignore_index=True)
    first = one(alone, population=population, seed=3)
    again = nacme.rank_correlation(both, ["val_acc", "nac_me"], population, seed=3)
    assert again[(again.test_env == 0) & (again.criterion == "nac_me")].iloc[0].equals(first)
    assert one(alone, population=population, seed=4).kendall_low != first.kendall_low


def test_cells_stay_apart_unless_algorithms_are_pooled() -> None:
    df = pd.concat([sweep(), sweep(seed=1, algorithm="CORAL", run="c"), sweep(seed=2, dataset="Other", run="o")])
    assert len(nacme.rank_correlation(df, ["nac_me"])) == 3
    pooled = nacme.rank_correlation(df, ["nac_me"], pool_algorithms=True)
    assert pooled[["dataset", "algorithm"]].to_numpy().tolist() == [["Other", "all"], ["Toy", "all"]]
    assert pooled["n_runs"].tolist() == [1, 6]


def test_more_confidence_is_a_wider_interval() -> None:
    df = sweep()
    narrow, wide = one(df, confidence=0.5), one(df, confidence=0.99)
    assert wide.kendall_low < narrow.kendall_low < narrow.kendall_high < wide.kendall_high


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="population"):
        nacme.rank_correlation(sweep(), population="checkpoint")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_boot"):
        nacme.rank_correlation(sweep(), n_boot=0)
    with pytest.raises(ConfigError, match="confidence"):
        nacme.rank_correlation(sweep(), confidence=95)
    with pytest.raises(CriterionError, match="do not hold"):
        nacme.rank_correlation(sweep().drop(columns="nac_me"))


def test_a_sweep_on_disk(simulated_sweep: Path) -> None:
    table = nacme.rank_correlation(nacme.load_sweep(simulated_sweep))
    assert table["n_runs"].tolist() == [8] * 6
    assert (table["kendall_tau"] > 0.3).all()


def autocorrelated(rng: np.random.Generator, n_runs: int, n_steps: int = 17) -> tuple[np.ndarray, np.ndarray]:
    """Two criteria that share half of their variance; each has a level per run and memory along it."""

    def series() -> np.ndarray:
        noise = rng.normal(size=(n_runs, n_steps))
        values = noise.copy()
        for t in range(1, n_steps):
            values[:, t] = 0.9 * values[:, t - 1] + np.sqrt(1 - 0.9**2) * noise[:, t]
        return values + 0.5 * rng.normal(size=(n_runs, 1))

    shared = series()
    return shared + series(), shared + series()


def simulated(rng: np.random.Generator, n_runs: int = 20) -> pd.DataFrame:
    x, y = autocorrelated(rng, n_runs)
    columns = {"dataset": "Toy", "algorithm": "ERM", "test_env": 0, "n_test_envs": 1, "step": 1}
    run = np.repeat([f"r{r:02}" for r in range(n_runs)], x.shape[1])
    return pd.DataFrame({"run": run, **columns, "nac_me": x.ravel(), "test_acc": y.ravel()})


@pytest.fixture(scope="module")
def truth() -> dict[str, float]:
    """The two populations' tau, from far more runs than a study has."""
    x, y = autocorrelated(np.random.default_rng(0), 4000)
    within = np.mean([scipy.stats.kendalltau(a, b).statistic for a, b in zip(x, y)])
    return {"run": float(within), "sweep": float(scipy.stats.kendalltau(x.ravel(), y.ravel()).statistic)}


@pytest.mark.slow
@pytest.mark.parametrize("population", ["run", "sweep"])
def test_the_interval_holds_the_truth_as_often_as_it_says(population: str, truth: dict[str, float]) -> None:
    held = []
    for seed in range(200):
        df = simulated(np.random.default_rng([1, seed]))
        row = one(df, population=population, n_boot=400)
        held.append(row.kendall_low <= truth[population] <= row.kendall_high)
    assert 0.92 <= np.mean(held) <= 0.97


@pytest.mark.slow
def test_resampling_checkpoints_as_if_they_were_independent_would_not(truth: dict[str, float]) -> None:
    held = []
    for seed in range(50):
        df = simulated(np.random.default_rng([1, seed]))
        alone = df.assign(run=[f"c{i}" for i in range(len(df))])  # each checkpoint a run of its own
        row = one(alone, population="sweep", n_boot=200)
        held.append(row.kendall_low <= truth["sweep"] <= row.kendall_high)
    assert np.mean(held) < 0.7


def test_what_is_left_beyond_step_and_val_acc_stands_in_a_column_of_its_own() -> None:
    df = sweep(n_runs=3, n_steps=12)
    within = nacme.rank_correlation(df, ["nac_me", "val_acc"]).set_index("criterion")
    expected = []
    for _, run in df[df.step > 0].groupby("run"):
        ranks = run[["nac_me", "test_acc", "step", "val_acc"]].rank()
        design = np.column_stack([np.ones(len(ranks)), ranks[["step", "val_acc"]]])
        left = ranks[["nac_me", "test_acc"]].to_numpy()
        left = left - design @ np.linalg.lstsq(design, left, rcond=None)[0]
        expected.append(np.corrcoef(left.T)[0, 1])
    assert within.loc["nac_me", "partial_spearman_step_val_acc"] == pytest.approx(np.mean(expected))
    assert np.isnan(within.loc["val_acc", "partial_spearman_step_val_acc"])
    across = one(df, population="sweep")
    kept = df[df.step > 0]
    alone = nacme.inference.statistics.partial_spearman_both(kept.nac_me, kept.test_acc, kept.step, kept.val_acc)
    assert across.partial_spearman_step_val_acc == pytest.approx(alone)
    assert np.isnan(one(df.drop(columns="val_acc")).partial_spearman_step_val_acc)
