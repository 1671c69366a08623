"""Train with DomainBed's own flags, recording coverage at every checkpoint: ``python -m domainbed_plugins.train``.

Source: the flags and their defaults are those of ``domainbed/scripts/train.py``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from nacme.errors import ConfigError

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


def parser() -> argparse.ArgumentParser:
    """Build the parser: DomainBed's flags and the plugin's.

    Returns
    -------
    argparse.ArgumentParser
    """
    result = argparse.ArgumentParser(
        prog="nacme train",
        description="DomainBed's training, with neuron activation coverage recorded at every checkpoint",
    )
    stock = result.add_argument_group("DomainBed's flags")
    for name, options in STOCK_FLAGS.items():
        stock.add_argument(f"--{name}", **options)
    ours = result.add_argument_group("coverage")
    ours.add_argument(
        "--nac_split", choices=["out", "in"], default="out", help="splits that coverage is measured on"
    )
    ours.add_argument(
        "--nac_layers", nargs="+", default=None, metavar="LAYER", help="default: penultimate features"
    )
    ours.add_argument("--nac_alpha", type=_alpha, default=0.1, help="steepness of the state, or 'auto'")
    ours.add_argument("--nac_bins", type=int, default=50, help="M, the number of bin edges")
    ours.add_argument("--nac_fill", type=_fill, default=500, help="O: a count (500) or a fraction (0.08)")
    ours.add_argument("--nac_all_samples", action="store_true", help="count incorrectly classified samples too")
    ours.add_argument(
        "--domainbed", metavar="PATH", default=None, help="a DomainBed clone; default: DOMAINBED_ROOT"
    )
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags and train.

    Parameters
    ----------
    argv : sequence of str, optional
        None: the process's arguments.

    Raises
    ------
    NacmeError
        For a user's mistake.
    """
    flags = parser().parse_args(argv)
    args = {name: getattr(flags, name) for name in STOCK_FLAGS}

    from domainbed_plugins import backends
    from domainbed_plugins.runner import TrainOptions, train
    from nacme.measurement import CoverageSettings

    options = TrainOptions(
        settings=CoverageSettings(flags.nac_alpha, flags.nac_bins, flags.nac_fill, not flags.nac_all_samples),
        layers=flags.nac_layers,
        split=flags.nac_split,
    )
    train(backends.find(args["dataset"], flags.domainbed), args, options)


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


def _alpha(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _fill(text: str) -> int | float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


if __name__ == "__main__":
    from nacme.cli import report_errors

    report_errors(main)
