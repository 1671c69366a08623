from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from nacme.study.quality import selection_quality, summarise_quality


def population(test_env: int, rows: list[tuple[float, float, float]], **more: Any) -> pd.DataFrame:
    """One run; each row is (nac_me, val_acc, test_acc) of a checkpoint."""
    df = pd.DataFrame(rows, columns=["nac_me", "val_acc", "test_acc"])
    fixed = {
        "run": f"r{test_env}{sorted(more.items())}",
        "dataset": "Toy",
        "algorithm": "ERM",
        "test_env": test_env,
        "n_test_envs": 1,
        "trial_seed": 0,
        "hparams_seed": 0,
        "checkpoint": None,
        "step": 100 * np.arange(len(df)),
    }
    return df.assign(**{**fixed, **more})


HAND = pd.concat(
    [
        # nac_me picks 0.8, val_acc 0.5, last 0.6, best 0.9.
        population(0, [(0.1, 0.3, 0.9), (0.9, 0.2, 0.8), (0.5, 0.9, 0.5), (0.3, 0.1, 0.6)]),
        # The second trial of the same cell: nac_me picks 0.4, val_acc 0.4, last 0.2, best 0.4.
        population(0, [(0.9, 0.9, 0.4), (0.1, 0.1, 0.2)], trial_seed=1),
        # The other env: nac_me picks 0.1, val_acc and last 0.3, best 0.3.
        population(1, [(0.9, 0.1, 0.1), (0.2, 0.8, 0.3)]),
    ],
    ignore_index=True,
)


def test_a_cell_by_hand() -> None:
    row = selection_quality(HAND, ["nac_me"]).set_index("test_env").loc[0]
    assert (row.n_populations, row.n_undefined) == (2, 0)
    assert row.top1_acc == pytest.approx((0.8 + 0.4) / 2)
    assert row.regret == pytest.approx((10 + 0) / 2)
    assert row.gain_over_val_acc == pytest.approx((30 + 0) / 2)
    assert row.gain_over_last == pytest.approx((20 + 20) / 2)
    # Only the first population has three checkpoints; the best-ranked are those with 0.8 0.5 0.6. None has five.
    assert row.top3_acc == pytest.approx(1.9 / 3)
    assert np.isnan(row.top5_acc)


def test_ties_are_counted_and_what_drawing_from_them_costs() -> None:
    flat = population(0, [(0.5, 0.1, 0.9), (0.5, 0.3, 0.6), (0.5, 0.2, 0.3), (0.1, 0.1, 0.2)])
    df = pd.concat([flat, population(1, [(0.9, 0.1, 0.1), (0.2, 0.8, 0.3)])], ignore_index=True)
    table = selection_quality(df, ["nac_me"])
    assert table["n_tied"].tolist() == [3, 1]
    assert table["n_no_choice"].tolist() == [1, 0]
    # The earliest of the tied is the best one; drawn at random, 30 points are lost on average.
    assert table["regret"].tolist() == pytest.approx([0, 20])
    assert table["regret_over_ties"].tolist() == pytest.approx([30, 20])
    row = summarise_quality(table).iloc[0]
    assert (row.n_populations, row.n_no_choice, row.n_tied) == (2, 1, 2)
    assert row.regret_over_ties == pytest.approx(25)


def test_the_summary_averages_cells_and_counts_wins() -> None:
    quality = selection_quality(HAND, ["nac_me", "last"])
    summary = summarise_quality(quality).set_index("criterion")
    row = summary.loc["nac_me"]
    # Env 0 counts as much as env 1, though it has twice the trials.
    assert row.n_cells == 2
    assert row.regret == pytest.approx((5 + 20) / 2)
    assert row.gain_over_val_acc == pytest.approx((15 - 20) / 2)
    assert (row.wins_over_val_acc, row.losses_to_val_acc, row.ties_with_val_acc) == (1, 1, 0)
    assert row.win_rate_over_val_acc == 0.5
    assert row.sign_p_over_val_acc == 1
    # A criterion ties with itself everywhere: no win rate, not one of 0.
    assert summary.loc["last", "ties_with_last"] == 2
    assert np.isnan(summary.loc["last", "win_rate_over_last"])
    assert np.isnan(summary.loc["last", "sign_p_over_last"])


def test_algorithms_are_averaged_within_a_cell_first() -> None:
    df = pd.concat([HAND, population(1, [(0.9, 0.1, 0.5), (0.2, 0.8, 0.3)], algorithm="CORAL")], ignore_index=True)
    quality = selection_quality(df, ["nac_me"])
    assert len(quality) == 3
    row = summarise_quality(quality).iloc[0]
    assert row.n_cells == 2
    # Env 1: -20 with ERM, +20 with CORAL.
    assert row.gain_over_val_acc == pytest.approx((15 + 0) / 2)
    assert (row.wins_over_val_acc, row.losses_to_val_acc, row.ties_with_val_acc) == (1, 0, 1)


def test_the_sign_test_is_the_binomials() -> None:
    df = pd.concat([population(e, [(0.9, 0.1, 0.5), (0.2, 0.8, 0.3 if e else 0.7)]) for e in range(6)])
    row = summarise_quality(selection_quality(df, ["nac_me"])).iloc[0]
    assert (row.wins_over_val_acc, row.losses_to_val_acc) == (5, 1)
    assert row.win_rate_over_val_acc == pytest.approx(5 / 6)
    assert row.sign_p_over_val_acc == pytest.approx(2 * scipy.stats.binom.cdf(1, 6, 0.5))


def test_populations_without_a_value_are_counted_and_left_out() -> None:
    df = HAND.copy()
    df.loc[df.trial_seed == 1, "nac_me"] = np.nan
    row = selection_quality(df, ["nac_me"]).set_index("test_env").loc[0]
    assert (row.n_populations, row.n_undefined) == (2, 1)
    assert row.regret == pytest.approx(10)
    assert row.gain_over_val_acc == pytest.approx(30)


def test_per_run_each_run_is_a_population() -> None:
    df = pd.concat([HAND, population(1, [(0.9, 0.1, 0.7)], hparams_seed=1)], ignore_index=True)
    across = selection_quality(df, ["nac_me"], per="sweep").set_index("test_env").loc[1]
    within = selection_quality(df, ["nac_me"], per="run").set_index("test_env").loc[1]
    assert (across.n_populations, within.n_populations) == (1, 2)
    # Within runs: 20 points lost in one, none in the other. Across: the seeds tie at 0.9, the higher wins.
    assert within.regret == pytest.approx(10)
    assert across.regret == pytest.approx(0)


def test_the_oracle_has_no_regret() -> None:
    table = selection_quality(HAND, ["oracle"])
    assert table["regret"].tolist() == [0, 0]
    assert (table[["gain_over_val_acc", "gain_over_last"]] >= 0).all(axis=None)
