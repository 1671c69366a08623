"""The global random generators that data sets and algorithms draw from: seeding, keeping and comparing them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from domainbed_plugins.runs import snapshot


def seed_everything(seed: int) -> None:
    """Seed the global generators that data sets and algorithms draw from, as DomainBed does.

    Parameters
    ----------
    seed : int
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the algorithms draw from the global generators
    torch.manual_seed(seed)


def generator_states() -> dict[str, Any]:
    """Read where the global generators stand, for a run's state.

    Returns
    -------
    dict
        See `set_generator_states`.
    """
    return {
        "python": list(random.getstate()),
        "numpy": snapshot.capture(np.random.get_state(legacy=False)),  # noqa: NPY002 - the algorithms draw from it
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_generator_states(states: dict[str, Any]) -> None:
    """Put the global generators where they stood.

    Parameters
    ----------
    states : dict
        What `generator_states` gave, maybe on a machine with other GPUs.
    """
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(snapshot.rebuild(states["numpy"]))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextlib.contextmanager
def drawing_apart(seed: int) -> Iterator[None]:
    """Let what is drawn inside the context come from a seed of its own; after it the generators stand as before.

    Parameters
    ----------
    seed : int
    """
    before = generator_states()
    seed_everything(seed)
    try:
        yield
    finally:
        set_generator_states(before)


def cpu_positions() -> tuple[Any, ...]:
    """Read where the global generators of the processor stand, in a form that can be compared."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - whether this very generator was drawn from
    return random.getstate(), torch.get_rng_state().tolist(), name, np.asarray(keys).tolist(), rest
