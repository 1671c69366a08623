"""DomainBed's image folders at other sizes, ``PACS64``, ``PACS96``, ``OfficeHome96``, ..., and ``EMOJI``.

Everything is stock DomainBed's but the size of the images, the network, and the ranges of a few hyper-parameters:
what fits a machine without a GPU.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from domainbed_plugins.backends import networks
from nacme.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType

    from domainbed_plugins.interface import Testbed

#: Data sets whose name takes a size: DomainBed's image folders, and ours.
BASES = ("PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet", "SVIRO", "EMOJI")
SIZES = range(32, 225)
#: From this size on networks are pretrained.
PRETRAINED_FROM = 96
#: Those that are listed; others are made when they are asked for.
LISTED = ("PACS64", "PACS96", "OfficeHome96", "VLCS96", "TerraIncognita96", "EMOJI96")
#: The size that has its network without being told, as it had before networks had names.
UNNAMED = 64
#: Whose hyper-parameters are drawn for random weights: DomainBed's other data sets that train from such.
DRAWN_AS = "RotatedMNIST"
BATCH_SIZE = 8
#: The exponents of ten that learning rates of pretrained networks are drawn between. DomainBed's begin at -5,
#: where runs as short as a small machine can make them hardly begin to train.
LR_EXPONENTS = (-4.5, -3.5)


def parse(name: str) -> tuple[str, int] | None:
    """Read a data set's name.

    Parameters
    ----------
    name : str

    Returns
    -------
    tuple of str and int, or None
        The data set that it is made of and the size in pixels; None for any other name.

    Raises
    ------
    ConfigError
        If the size is out of range.
    """
    match = re.fullmatch(rf"({'|'.join(BASES)})(\d+)", name)
    if not match:
        return None
    if int(match[2]) not in SIZES:
        raise ConfigError(f"--dataset {name}: images can have {SIZES[0]} to {SIZES[-1]} pixels, as {match[1]}96")
    return match[1], int(match[2])


def add(testbed: Testbed, name: str) -> None:
    """Make DomainBed know a data set of another size. Names of other kinds, and known ones, change nothing.

    Parameters
    ----------
    testbed : Testbed
    name : str

    Raises
    ------
    ConfigError
        See `parse`.
    """
    datasets = testbed.datasets
    found = parse(name)
    if found is None or hasattr(datasets, name) or not hasattr(datasets, found[0]):
        return
    setattr(datasets, name, _resized(getattr(datasets, found[0]), name, found[1]))
    datasets.DATASETS.append(name)


def _resized(base: type[Any], name: str, size: int) -> type[Any]:
    """Build a data set on another: its folders, environments and transforms, with smaller images."""

    def __init__(self: Any, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
        base.__init__(self, root, test_envs, hparams)
        for env in self.datasets:
            sized = [step for step in env.transform.transforms if hasattr(step, "size")]
            if not sized:
                raise ConfigError(
                    f"{name}: this clone's {base.__name__} does not resize its images by a transform; use "
                    "DomainBed's own"
                )
            for step in sized:
                step.size = (size, size)
        self.input_shape = (3, size, size)

    return type(name, (base,), {"__init__": __init__, "__doc__": f"{base.__name__} at {size} pixels."})


def _make_emoji(datasets: ModuleType) -> type[Any]:
    class EMOJI(datasets.MultipleEnvironmentImageFolder):  # type: ignore[misc, name-defined]
        """Pictograms of 13 kinds, drawn by four artists."""

        CHECKPOINT_FREQ = 300
        ENVIRONMENTS = ("fluent", "noto", "openmoji", "twemoji")

        def __init__(self, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
            self.dir = os.path.join(root, "EMOJI/")
            super().__init__(self.dir, test_envs, hparams["data_augmentation"], hparams)

    return EMOJI


def _network_of(input_shape: Sequence[int]) -> str | None:
    return networks.SCRATCH if tuple(input_shape[1:3]) == (UNNAMED, UNNAMED) else None


def register(testbed: Testbed) -> None:
    """Add the data sets, their networks and hyper-parameters to DomainBed. Registering again changes nothing.

    Parameters
    ----------
    testbed : Testbed
        From `domainbed_plugins.backends.find`. One without ``PACS``, as the embedded testbed, stays as it is.

    Notes
    -----
    Below 96 pixels weights are random, and hyper-parameters are drawn as for DomainBed's small images: a learning
    rate of 1e-3, or 10^U(-4.5, -2.5), and a batch size of 64, or 2^U(3, 9). From 96 pixels on they are drawn as
    for the data set that the name begins with, but for a batch size of 8 and a learning rate of 5e-5, or
    10^U(-4.5, -3.5); and batch normalization is frozen, as in the DomainBed of the benchmark's paper.
    """
    datasets, registry = testbed.datasets, testbed.hparams_registry
    if hasattr(datasets, "EMOJI") or not hasattr(datasets, "PACS"):
        return
    datasets.EMOJI = _make_emoji(datasets)  # type: ignore[attr-defined]
    datasets.DATASETS.append("EMOJI")
    for name in LISTED:
        add(testbed, name)
    networks.register(importlib.import_module(f"{datasets.__package__}.networks"), _network_of)
    stock_default, stock_random = registry.default_hparams, registry.random_hparams

    def drawn(stock: Callable[..., Any], algorithm: str, dataset: str, *seed: int) -> dict[str, Any]:
        found = parse(dataset)
        if found is None:
            return dict(stock(algorithm, dataset, *seed))
        base, size = found
        if size < PRETRAINED_FROM:
            name = {} if size == UNNAMED else {"featurizer": networks.SCRATCH}
            return {**stock(algorithm, DRAWN_AS, *seed), **name}
        hparams = dict(stock(algorithm, base, *seed))
        if seed and algorithm != "ADRMX":  # which chooses from a list
            generator = np.random.RandomState(testbed.misc.seed_hash(*seed, "lr"))
            hparams["lr"] = 10 ** generator.uniform(*LR_EXPONENTS)
        return {**hparams, "batch_size": BATCH_SIZE, "freeze_bn": True, "featurizer": networks.PACKAGED}

    def default_hparams(algorithm: str, dataset: str) -> dict[str, Any]:
        return drawn(stock_default, algorithm, dataset)

    def random_hparams(algorithm: str, dataset: str, seed: int) -> dict[str, Any]:
        return drawn(stock_random, algorithm, dataset, seed)

    registry.default_hparams = default_hparams  # type: ignore[attr-defined]
    registry.random_hparams = random_hparams  # type: ignore[attr-defined]
