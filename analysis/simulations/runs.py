"""Runs drawn from known distributions: what the simulations of the statistics are made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.float64]

#: Values of a run, less their mean: what a difference of two taus may be distributed like, and worse.
VALUES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
    "lognormal": lambda rng, shape: rng.lognormal(size=shape) - np.exp(0.5),
    "t3": lambda rng, shape: rng.standard_t(3, size=shape),
    "tau": lambda rng, shape: rng.beta(8, 1.2, size=shape) - 8 / 9.2,
}


def drift(rng: np.random.Generator, shape: tuple[int, ...], memory: float = 0.9) -> Array:
    """Draw series of unit variance with memory along the last axis, as the checkpoints of a run have it."""
    noise = rng.normal(size=shape)
    values = noise.copy()
    for t in range(1, shape[-1]):
        values[..., t] = memory * values[..., t - 1] + np.sqrt(1 - memory**2) * noise[..., t]
    return values


def noise(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Array, Array, Array]:
    """Draw an accuracy and two criteria that know nothing of it."""
    accuracy, a, b = (drift(rng, shape) + rng.normal(size=(*shape[:2], 1)) for _ in range(3))
    return accuracy, a, b


def followers(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Array, Array, Array]:
    """Draw an accuracy and two criteria that follow it equally well."""
    accuracy, a, b = noise(rng, shape)
    return accuracy, accuracy + 0.7 * a, accuracy + 0.7 * b


def exchanged(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Array, Array, Array]:
    """Draw an accuracy, a good and a bad criterion, and exchange these two in half of the runs."""
    accuracy, a, b = noise(rng, shape)
    good, bad = accuracy + 0.3 * a, 3 - accuracy + 0.3 * b
    swapped = rng.random((*shape[:2], 1)) < 0.5
    return accuracy, np.where(swapped, bad, good), np.where(swapped, good, bad)


#: Two criteria between which there is no difference; the second is then put on another scale.
NULLS = {"noise": noise, "followers": followers, "exchanged": exchanged}


def sweeps(rng: np.random.Generator, null: str, n_sweeps: int, n_runs: int, n_steps: int = 6) -> pd.DataFrame:
    """Draw sweeps of one test env each, as `nacme.load_sweep` would give them; ``test_env`` counts the sweeps."""
    shape = (n_sweeps, n_runs, n_steps)
    accuracy, a, b = NULLS[null](rng, shape)
    sweep, run, step = (grid.ravel() for grid in np.meshgrid(*map(np.arange, shape), indexing="ij"))
    return pd.DataFrame(
        {
            "run": [f"{s}-{r}" for s, r in zip(sweep, run)],
            "dataset": "Simulated",
            "algorithm": "ERM",
            "test_env": sweep,
            "n_test_envs": 1,
            "trial_seed": 0,
            "hparams_seed": run,
            "step": 100 * (step + 1),
            "checkpoint": None,
            "test_acc": accuracy.ravel(),
            "nac_me": a.ravel(),
            "val_acc": np.exp(b / 4).ravel(),
        }
    )
