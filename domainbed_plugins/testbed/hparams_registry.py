"""Default and random hyper-parameters, drawn as DomainBed draws them, in ranges that suit the testbed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.random import RandomState

from .lib.misc import seed_hash

# Each entry: the default, and how to draw a random value.
_Entry = tuple[Any, Callable[[RandomState], Any]]

_COMMON: dict[str, _Entry] = {
    # The datasets have no augmentation; the key is part of DomainBed's interface.
    "data_augmentation": (False, lambda r: False),
    "class_balanced": (False, lambda r: False),
    "nonlinear_classifier": (False, lambda r: False),
    "lr": (3e-3, lambda r: 10 ** r.uniform(-3.7, -1.7)),
    "weight_decay": (0.0, lambda r: 10 ** r.uniform(-6, -2)),
    # An environment trains on 239 samples or more.
    "batch_size": (32, lambda r: int(2 ** r.uniform(4, 6))),
}

# The annealing ends within the few hundred steps of a run (DomainBed's: 500 by default, of 5,000).
_BY_ALGORITHM: dict[str, dict[str, _Entry]] = {
    "IRM": {
        # Some 300 steps do not recover from a larger weight.
        "irm_lambda": (3.0, lambda r: 10 ** r.uniform(-1, 0.5)),
        "irm_penalty_anneal_iters": (100, lambda r: int(10 ** r.uniform(1, 2.2))),
    },
    "VREx": {
        "vrex_lambda": (10.0, lambda r: 10 ** r.uniform(-1, 2)),
        "vrex_penalty_anneal_iters": (50, lambda r: int(10 ** r.uniform(0, 2.3))),
    },
    "GroupDRO": {"groupdro_eta": (1e-2, lambda r: 10 ** r.uniform(-3, -1))},
    "Mixup": {"mixup_alpha": (0.2, lambda r: 10 ** r.uniform(-1, 1))},
    "CORAL": {"mmd_gamma": (1.0, lambda r: 10 ** r.uniform(-1, 1))},
}


def _entries(algorithm: str) -> dict[str, _Entry]:
    return _COMMON | _BY_ALGORITHM.get(algorithm, {})


def default_hparams(algorithm: str, dataset: str) -> dict[str, Any]:
    """Return the default hyper-parameters.

    Parameters
    ----------
    algorithm : str
        Adds its own to the common ones. An unknown name adds none.
    dataset : str
        Not read: the ranges suit all datasets here.

    Returns
    -------
    dict
        JSON-serializable values by name.
    """
    return {name: default for name, (default, _) in _entries(algorithm).items()}


def random_hparams(algorithm: str, dataset: str, seed: int) -> dict[str, Any]:
    """Return random hyper-parameters.

    Each has its own random state, seeded by `seed` and its name: adding one leaves the others as they are.

    Parameters
    ----------
    algorithm, dataset : str
        As for `default_hparams`.
    seed : int
        Of the draw.

    Returns
    -------
    dict
        JSON-serializable values by name.
    """
    return {name: draw(RandomState(seed_hash(seed, name))) for name, (_, draw) in _entries(algorithm).items()}
