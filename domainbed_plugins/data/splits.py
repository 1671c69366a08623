"""A data set, and its environments split as DomainBed splits them.

Source: ``domainbed/scripts/train.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domainbed_plugins.interface import Testbed
from nacme.errors import ConfigError


@dataclass(frozen=True)
class Splits:
    """A data set's environments, split as DomainBed splits them.

    Attributes
    ----------
    dataset : DomainBed data set
    train : list of (int, dataset, weights)
        What is trained on: ``in`` splits of the training environments.
    uda : list of (dataset, weights)
        Unlabelled target splits.
    by_name : dict of str to dataset
        What is evaluated, in DomainBed's order: every ``env{i}_in``, ``env{i}_out``, ``env{i}_uda``.
    hash : str
        Of what decides which sample is in which split: the environments' sizes, the splits' and their seeds.
    """

    dataset: Any
    train: list[tuple[int, Any, Any]]
    uda: list[tuple[Any, Any]]
    by_name: dict[str, Any]
    hash: str


def make_dataset(testbed: Testbed, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> Any:
    """Load a data set.

    Parameters
    ----------
    testbed : Testbed
    args, hparams : mapping

    Returns
    -------
    DomainBed data set

    Raises
    ------
    ConfigError
        If the data cannot be found.
    """
    make = testbed.datasets.get_dataset_class(args["dataset"])
    try:
        return make(args["data_dir"], args["test_envs"], hparams)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"--data_dir {args['data_dir']}: {args['dataset']} cannot be read there: {error}"
        ) from error


def make_splits(testbed: Testbed, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> Splits:
    """Load a data set and split its environments as DomainBed does.

    Parameters
    ----------
    testbed : Testbed
    args, hparams : mapping

    Returns
    -------
    Splits

    Raises
    ------
    ConfigError
        If the data cannot be found, or a split is too small.
    """
    dataset = make_dataset(testbed, args, hparams)
    misc, balanced = testbed.misc, hparams["class_balanced"]

    def weighted(split: Any) -> tuple[Any, Any]:
        return split, misc.make_weights_for_balanced_classes(split) if balanced else None

    ins, outs, udas, parts = [], [], [], []
    for index, env in enumerate(dataset):
        seed = misc.seed_hash(args["trial_seed"], index)
        out, in_ = misc.split_dataset(env, int(len(env) * args["holdout_fraction"]), seed)
        uda = []
        if index in args["test_envs"]:
            uda, in_ = misc.split_dataset(in_, int(len(in_) * args["uda_holdout_fraction"]), seed)
        parts.append((args["dataset"], index, seed, len(env), len(out), len(uda)))
        ins.append(weighted(in_))
        outs.append(weighted(out))
        if len(uda):
            udas.append(weighted(uda))
        if not len(out):
            raise ConfigError(
                f"--holdout_fraction {args['holdout_fraction']} leaves env {index} ({len(env)} samples) without a "
                "validation split; raise it"
            )
    if args["task"] == "domain_adaptation" and not udas:
        raise ConfigError("--task domain_adaptation needs unlabelled samples; set --uda_holdout_fraction above 0")
    trained = [(index, *pair) for index, pair in enumerate(ins) if index not in args["test_envs"]]
    for label, split in [(f"env{i}_in", s) for i, s, _ in trained] + [("an uda split", s) for s, _ in udas]:
        # without weights DomainBed's sampler never completes a batch of such a split, and waits for ever
        if len(split) < hparams["batch_size"] and not balanced:
            raise ConfigError(
                f"batch_size {hparams['batch_size']} is larger than {label} ({len(split)} samples): no batch "
                "would ever be complete; lower it with --hparams '{\"batch_size\": 8}'"
            )
    by_name = {
        **{f"env{index}_in": split for index, (split, _) in enumerate(ins)},
        **{f"env{index}_out": split for index, (split, _) in enumerate(outs)},
        **{f"env{index}_uda": split for index, (split, _) in enumerate(udas)},
    }
    return Splits(dataset, trained, udas, by_name, hashlib.md5(json.dumps(parts).encode()).hexdigest())


EVAL_BATCH_SIZE = 64
