"""How often 95% intervals hold the truth: python -m analysis.simulations.intervals

Prints two tables, of the mean of run values and of tau over all checkpoints of all runs; both stand in
docs/criteria.md. One core, some minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import kendalltau

from analysis.simulations.runs import VALUES, drift
from nacme.inference import bootstrap
from nacme.inference.statistics import Array, RunPairs

RUNS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 28, 36)
BATCH = 250


def of_means(kind: str, n_runs: int, repetitions: int, seed: int = 0) -> dict[str, float]:
    """Simulate the interval of a mean over runs, and the percentile interval that was there before.

    Returns
    -------
    dict of str to float
        ``covered`` and ``before``: shares of intervals with the truth in them (NaN where none is given);
        ``width``: the median width over that of the one before.
    """
    rng = np.random.default_rng([seed, n_runs, *kind.encode()])
    now, before = [], []
    for _ in range(repetitions // BATCH):
        values = VALUES[kind](rng, (n_runs, BATCH))
        weights = bootstrap.run_weights(n_runs, 1000, rng)
        now.append(np.stack(bootstrap.mean_interval(values, weights, 0.95)))
        before.append(np.stack(bootstrap.percentile_interval(weights @ values / n_runs, 0.95, n_runs)))
    (low, high), (left, right) = np.hstack(now), np.hstack(before)
    given = n_runs >= bootstrap.LEAST_RUNS
    return {
        "covered": float(np.mean((low <= 0) & (high >= 0))) if given else float("nan"),
        "before": float(np.mean((left <= 0) & (right >= 0))),
        "width": float(np.median(high - low) / np.median(right - left)),
    }


def shared(rng: np.random.Generator, n_runs: int) -> tuple[Array, Array]:
    """Draw criterion and accuracy that share half of their variance, within runs and between them."""
    parts = [drift(rng, (n_runs, 8)) + 0.5 * rng.normal(size=(n_runs, 1)) for _ in range(3)]
    return parts[0] + parts[1], parts[0] + parts[2]


def between(rng: np.random.Generator, n_runs: int) -> tuple[Array, Array]:
    """Draw criterion and accuracy that differ between runs, hardly within them."""
    level = rng.normal(size=(2, n_runs, 1))
    return tuple(0.3 * drift(rng, (n_runs, 8)) + level[: k + 1].sum(0) for k in range(2))  # type: ignore[return-value]


def collapsed(rng: np.random.Generator, n_runs: int) -> tuple[Array, Array]:
    """Draw runs of which some collapse by an exponential amount."""
    lost = 4 * (rng.random((n_runs, 1)) < 0.15) * rng.exponential(size=(n_runs, 1))
    accuracy = drift(rng, (n_runs, 8)) + 0.5 * rng.normal(size=(n_runs, 1)) - lost
    return accuracy + drift(rng, (n_runs, 8)), accuracy


def heavy(rng: np.random.Generator, n_runs: int) -> tuple[Array, Array]:
    """Draw runs whose levels have heavy tails."""
    accuracy = drift(rng, (n_runs, 8)) + rng.standard_t(2, size=(n_runs, 1))
    return accuracy + drift(rng, (n_runs, 8)) + rng.standard_t(2, size=(n_runs, 1)), accuracy


def stepwise(rng: np.random.Generator, n_runs: int) -> tuple[Array, Array]:
    """Draw a criterion that knows the step alone, and runs that gain unequally by training."""
    time = np.linspace(0, 1, 8) ** 0.5
    gained = time * rng.lognormal(0, 0.4, size=(n_runs, 1)) + 0.3 * rng.normal(size=(n_runs, 1))
    return time + 0.2 * drift(rng, (n_runs, 8), 0.8), gained + 0.1 * drift(rng, (n_runs, 8), 0.8)


SWEEPS: Sequence[Callable[[np.random.Generator, int], tuple[Array, Array]]] = (
    shared, between, collapsed, heavy, stepwise,
)  # fmt: skip


def of_pooled_tau(
    draw: Callable[[np.random.Generator, int], tuple[Array, Array]], n_runs: int, repetitions: int, seed: int = 0
) -> dict[str, float]:
    """Simulate the interval of tau over all checkpoints; what is returned is as for `of_means`."""
    rng = np.random.default_rng([seed, n_runs, *draw.__name__.encode()])
    truth = np.mean([kendalltau(*map(np.ravel, draw(rng, 500))).statistic for _ in range(4)])
    now, before = [], []
    for _ in range(repetitions):
        x, y = draw(rng, n_runs)
        pairs = RunPairs(x.ravel(), y.ravel(), np.repeat(np.arange(n_runs), x.shape[1]))
        weights = bootstrap.run_weights(n_runs, 1000, rng)
        now.append(bootstrap.pooled_interval(pairs.kendall, pairs.kendall_influence, weights, 0.95))
        before.append(bootstrap.percentile_interval(pairs.kendall(weights), 0.95, n_runs))
    (low, high), (left, right) = np.transpose(now), np.transpose(before)
    given = n_runs >= bootstrap.LEAST_RUNS
    return {
        "covered": float(np.mean((low <= truth) & (high >= truth))) if given else float("nan"),
        "before": float(np.mean((left <= truth) & (right >= truth))),
        "width": float(np.median(high - low) / np.median(right - left)),
    }


def table(heads: Sequence[str], rows: Sequence[tuple[int, Sequence[dict[str, float]]]]) -> str:
    """Lay out coverage in percent, that of the percentile interval alone in brackets."""
    lines = [f"| runs | {' | '.join(heads)} |", "| ---: |" + " ---: |" * len(heads)]
    for n_runs, found in rows:
        cells = [
            ("none" if np.isnan(f["covered"]) else f"{100 * f['covered']:.1f}", f"{100 * f['before']:.1f}")
            for f in found
        ]
        lines.append(f"| {n_runs} | " + " | ".join(f"{now} ({before})" for now, before in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    means = [(n, [of_means(kind, n, 4000) for kind in VALUES]) for n in RUNS]
    print(table(list(VALUES), means))
    widths = ", ".join(f"{kind} {f['width']:.2f}" for kind, f in zip(VALUES, means[-1][1]))
    print(f"\nWidth over the percentile interval's at {RUNS[-1]} runs: {widths}.\n")
    few = [n for n in RUNS if n in (2, 3, 4, 5, 6, 8, 12, 20, 36)]
    pooled = [(n, [of_pooled_tau(draw, n, 600) for draw in SWEEPS]) for n in few]
    print(table([draw.__name__ for draw in SWEEPS], pooled))
    widths = ", ".join(f"{draw.__name__} {f['width']:.2f}" for draw, f in zip(SWEEPS, pooled[-1][1]))
    print(f"\nWidth over the percentile interval's at {few[-1]} runs: {widths}.")


if __name__ == "__main__":
    main()
