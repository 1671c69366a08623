"""DomainBed's arguments of a run: its flags, the checks of their values, and the hyper-parameters they draw.

Source: ``domainbed/scripts/train.py``.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Mapping
from typing import Any

from domainbed_plugins.backends.find import embedded
from domainbed_plugins.interface import Testbed
from nacme.errors import ConfigError, nearest


class FlagParser(argparse.ArgumentParser):
    """Reads flags spelled as DomainBed spells its own, ``--output_dir``; ``--output-dir`` is accepted, too."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See `argparse.ArgumentParser`."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([_underscored(word) for word in words], namespace)


def _underscored(word: str) -> str:
    flag, equals, value = word.partition("=")
    return flag[:2] + flag[2:].replace("-", "_") + equals + value if word.startswith("--") else word


#: DomainBed's flags; their values stand in a record's ``args``, and ours do not.
STOCK_FLAGS: dict[str, dict[str, Any]] = {
    "data_dir": {"type": str},
    "dataset": {"type": str, "default": "RotatedMNIST"},
    "algorithm": {"type": str, "default": "ERM"},
    "task": {
        "type": str,
        "default": "domain_generalization",
        "choices": ["domain_generalization", "domain_adaptation"],
    },
    "hparams": {"type": str, "help": "hyper-parameters that override the drawn ones, as a JSON object"},
    "hparams_seed": {"type": int, "default": 0, "help": "seed of random hyper-parameters; 0: the defaults"},
    "trial_seed": {"type": int, "default": 0, "help": "trial number: seeds the splits and the hyper-parameters"},
    "seed": {"type": int, "default": 0, "help": "seed for everything else"},
    "steps": {"type": int, "default": None, "help": "number of steps; default: the data set's"},
    "checkpoint_freq": {"type": int, "default": None, "help": "checkpoint every N steps; default: the data set's"},
    "test_envs": {"type": int, "nargs": "+", "default": [0]},
    "output_dir": {"type": str, "default": "train_output"},
    "holdout_fraction": {"type": float, "default": 0.2},
    "uda_holdout_fraction": {
        "type": float,
        "default": 0,
        "help": "domain adaptation: part of a test environment to train on without labels",
    },
    "skip_model_save": {"action": "store_true"},
    "save_model_every_checkpoint": {"action": "store_true"},
}

#: Flags that stand for hyper-parameters of these names.
NETWORK_FLAGS: dict[str, dict[str, Any]] = {
    "featurizer": {
        "metavar": "NAME",
        "help": "resnet10 (random weights), efficientnet_lite0 (pretrained), or timm:NAME with weights of a file",
    },
    "featurizer_weights": {
        "metavar": "FILE",
        "help": "weights of timm:NAME: .safetensors, or .pth of a state dict",
    },
    "head_init": {
        "choices": ["stock", "shared", "linear_probe"],
        "help": "where the classifier starts: DomainBed's draw (default), one draw for all runs of a trial, or "
        "that fitted to the features of the training environments",
    },
    "channels_last": {
        "action": "store_true",
        "help": "lay images out so that convolutions are faster on most machines; changes last digits",
    },
}


def parse_hparams(text: str | None) -> dict[str, Any]:
    """Read ``--hparams``.

    Parameters
    ----------
    text : str or None
        A JSON object.

    Returns
    -------
    dict

    Raises
    ------
    ConfigError
        If it is something else.
    """
    if not text:
        return {}
    try:
        hparams = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"--hparams is not JSON ({error}); write for example --hparams '{{\"lr\": 0.001}}'"
        ) from error
    if not isinstance(hparams, dict):
        raise ConfigError(f"--hparams must be a JSON object, not {text!r}; write for example '{{\"lr\": 0.001}}'")
    return hparams


def with_network(hparams: str | None, chosen: Mapping[str, Any]) -> str | None:
    """Write the network that flags or a specification choose among the hyper-parameters.

    Parameters
    ----------
    hparams : str or None
        ``--hparams``.
    chosen : mapping
        By flag name; None, False and DomainBed's own ``"stock"`` are left out.

    Returns
    -------
    str or None
        `hparams` as it is, where that changes nothing.

    Raises
    ------
    ConfigError
        See `parse_hparams`.
    """
    before = parse_hparams(hparams)
    after = {**before, **{name: chosen[name] for name in NETWORK_FLAGS if chosen.get(name)}}
    if after.get("head_init") == "stock":
        del after["head_init"]
    return hparams if after == before else json.dumps(after)


def check_names(testbed: Testbed, args: Mapping[str, Any]) -> None:
    """Refuse an unknown data set or algorithm, or a test environment out of range.

    Parameters
    ----------
    testbed : Testbed
    args : mapping

    Raises
    ------
    ConfigError
    """
    try:
        testbed.algorithms.get_algorithm_class(args["algorithm"])
    except NotImplementedError:
        raise ConfigError(
            f"--algorithm {args['algorithm']!r} is unknown to {testbed.name}; "
            f"{nearest(args['algorithm'], testbed.algorithms.ALGORITHMS)}"
        ) from None
    if args["dataset"] not in testbed.datasets.DATASETS:
        known = dict.fromkeys([*testbed.datasets.DATASETS, *embedded().datasets.DATASETS])
        raise ConfigError(
            f"--dataset {args['dataset']!r} is unknown to {testbed.name}; {nearest(args['dataset'], known)}"
        )
    count = testbed.datasets.num_environments(args["dataset"])
    wrong = [env for env in args["test_envs"] if not 0 <= env < count]
    if wrong:
        raise ConfigError(f"--test_envs {wrong[0]} is out of range: {args['dataset']} has envs 0 to {count - 1}")
    if len(set(args["test_envs"])) == count:
        raise ConfigError("--test_envs names every environment; leave at least one to train on")


def check_hparams(testbed: Testbed, args: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters that nothing would read, as misspelled ones.

    Parameters
    ----------
    testbed : Testbed
    args : mapping
        Those of another algorithm pass, for a sweep gives all its algorithms the same.

    Raises
    ------
    ConfigError
    """
    if not (given := parse_hparams(args["hparams"])):
        return
    known = set(NETWORK_FLAGS)
    for algorithm in {*testbed.algorithms.ALGORITHMS, args["algorithm"]}:
        known |= testbed.hparams_registry.default_hparams(algorithm, args["dataset"]).keys()
    # DomainBed's registry lacks some that its algorithms read
    module = inspect.getmodule(testbed.algorithms.get_algorithm_class(args["algorithm"]))
    source = inspect.getsource(module) if module else ""
    for name in given:
        if name not in known and f"'{name}'" not in source and f'"{name}"' not in source:
            raise ConfigError(f"--hparams {name!r} is read by nothing; {nearest(name, known)}")


def make_hparams(testbed: Testbed, args: Mapping[str, Any]) -> dict[str, Any]:
    """Draw a run's hyper-parameters as DomainBed does.

    Parameters
    ----------
    testbed : Testbed
    args : mapping

    Returns
    -------
    dict

    Raises
    ------
    ConfigError
        If ``hparams`` is no JSON object.
    """
    registry = testbed.hparams_registry
    if args["hparams_seed"] == 0:
        hparams = registry.default_hparams(args["algorithm"], args["dataset"])
    else:
        seed = testbed.misc.seed_hash(args["hparams_seed"], args["trial_seed"])
        hparams = registry.random_hparams(args["algorithm"], args["dataset"], seed)
    return {**hparams, **parse_hparams(args["hparams"])}
