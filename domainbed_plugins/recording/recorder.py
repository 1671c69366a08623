"""The recorder of a DomainBed algorithm, for training and for scoring alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from domainbed_plugins.recording.layers import resolve
from domainbed_plugins.recording.options import RecordOptions
from nacme.recorder import Recorder


def make_recorder(
    algorithm: nn.Module,
    options: RecordOptions,
    loader: Callable[[str], Iterable[Any]],
    train_envs: Sequence[int],
    test_envs: Sequence[int],
    device: torch.device | str,
    notes: Mapping[str, Any],
) -> Recorder:
    """Build the recorder of an algorithm.

    Parameters
    ----------
    algorithm : nn.Module
    options : RecordOptions
    loader : callable
        Gives the loader of a split such as ``"env0_out"``, the same one each time.
    train_envs, test_envs : sequence of int
    device : torch.device or str
    notes : mapping
        For the record's ``nac`` object, beside the split.

    Returns
    -------
    Recorder

    Raises
    ------
    NacmeError
        See `nacme.recorder.Recorder`.
    """

    def of(split: str, envs: Sequence[int]) -> dict[str, Iterable[Any]]:
        return {name: loader(name) for name in (f"env{env}_{split}" for env in envs)}

    return Recorder(
        algorithm,
        of("out", train_envs),
        coverage_loaders=of(options.split, train_envs),
        further_loaders={split: of(split, train_envs) for split in options.further_splits()},
        settings=options.settings,
        grid=options.grid,
        criteria=options.criteria,
        target_loaders=of("out", test_envs if options.target_unlabeled else ()),
        layers=resolve(options.layers, algorithm),
        device=device,
        notes={"split": options.split, **notes},
        craft_samples=options.craft_samples,
        remedy="measure with {flags}, or rank by nac_me_robust",
    )
