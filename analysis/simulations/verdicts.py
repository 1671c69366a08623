"""How often a difference is claimed where there is none: python -m analysis.simulations.verdicts

Prints the shares of sweeps of noise in which a verdict is better or worse, within runs, across the sweep and for
choices, and the shares of p-values at or below each level across the sweep; they stand in docs/criteria.md. One
core, some minutes.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.simulations.runs import NULLS, sweeps
from nacme.inference import bootstrap
from nacme.inference.decision import decide, decide_choice
from nacme.study.comparison import compare_criteria
from nacme.study.correlation import Population
from nacme.study.quality import selection_quality, summarise_quality

RUNS = (2, 3, 4, 5, 6, 8, 12, 20, 40)
WITHIN, ACROSS = 1000, 150  # sweeps


def compared(null: str, population: Population, n_runs: int, n_sweeps: int, seed: int = 0) -> pd.DataFrame:
    """Compare two criteria between which there is no difference, in each of so many sweeps."""
    rng = np.random.default_rng([seed, n_runs, *f"{null} {population}".encode()])
    df = sweeps(rng, null, n_sweeps, n_runs)
    # with fewer than 12 runs p across a sweep is never 0.05, whatever the interval
    n_boot = 1 if population == "sweep" and n_runs < 12 else 500
    return compare_criteria(df, "nac_me", "val_acc", population, n_boot=n_boot, n_permutations=2_000)


def claimed(table: pd.DataFrame) -> float:
    """Return the share of comparisons in which a difference is told."""
    kinds = [decide(*row) for row in table[["low", "high", "p_value"]].to_numpy(float)]
    return float(np.mean([kind in ("better", "worse") for kind in kinds]))


def claimed_before(null: str, n_runs: int, n_sweeps: int, seed: int = 0) -> float:
    """Return the share within runs in which the percentile interval alone left out 0: the rule before."""
    rng = np.random.default_rng([seed, n_runs, *f"{null} before".encode()])
    df = sweeps(rng, null, n_sweeps, n_runs).assign(test_env=lambda d: d["run"].factorize()[0])
    table = compare_criteria(df, "nac_me", "val_acc", n_boot=1)
    differences = table["difference"].to_numpy(float).reshape(n_sweeps, n_runs).T
    weights = bootstrap.run_weights(n_runs, 1000, rng)
    low, high = bootstrap.percentile_interval(weights @ differences / n_runs, 0.95, n_runs)
    return float(np.mean((low > 0) | (high < 0)))


def claimed_of_choices(null: str, n_envs: int, n_sweeps: int, seed: int = 0) -> float:
    """Return the share of studies of so many test envs in which the choices are told to be better or worse."""
    rng = np.random.default_rng([seed, n_envs, *f"{null} choices".encode()])
    df = sweeps(rng, null, n_sweeps * n_envs, 3)
    quality = selection_quality(df, ["nac_me"], baselines=["val_acc"])
    told = []
    for _, study in quality.groupby(quality["test_env"] // n_envs):
        row = summarise_quality(study).iloc[0]
        told.append(
            decide_choice(
                *(row[f"{name}_val_acc"] for name in ("gain_over", "wins_over", "losses_to", "sign_p_over"))
            )
        )
    return float(np.mean([kind in ("better", "worse") for kind in told]))


def levels(table: pd.DataFrame) -> list[tuple[float, float]]:
    """Return each level that p can take up to 0.3 and the share of p-values no larger."""
    p = table["p_value"].to_numpy(float)
    attained = np.unique(p[p <= 0.3])
    return [(float(level), float(np.mean(p <= level + 1e-9))) for level in attained]


def main() -> None:
    print("| runs | " + " | ".join(f"within, {n}" for n in NULLS) + " | percentile alone | ", end="")
    print(" | ".join(f"across, {n}" for n in NULLS) + " | choices* |")
    print("| ---: |" + " ---: |" * (2 * len(NULLS) + 2))
    worst: list[tuple[float, str]] = []
    for n_runs in RUNS:
        within = [claimed(compared(null, "run", n_runs, WITHIN)) for null in NULLS]
        across = []
        for null in NULLS:
            table = compared(null, "sweep", n_runs, ACROSS)
            across.append(claimed(table))
            for level, share in levels(table):
                excess = (share - level) / np.sqrt(level * (1 - level) / ACROSS)
                worst.append((float(excess), f"P(p <= {level:.4f}) = {share:.4f} with {n_runs} runs, {null}"))
        cells = [
            *within,
            claimed_before("noise", n_runs, WITHIN),
            *across,
            claimed_of_choices("noise", n_runs, ACROSS),
        ]
        print(f"| {n_runs} | " + " | ".join(f"{100 * cell:.1f}" for cell in cells) + " |", flush=True)
    excess, where = max(worst)
    print(
        f"\nOf {len(worst)} levels of p across sweeps the most exceeded, by {excess:.1f} standard errors: {where}"
    )


if __name__ == "__main__":
    main()
