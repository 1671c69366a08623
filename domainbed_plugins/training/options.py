"""What the plugin adds to the arguments of a run, and what of it must not change between the parts of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_plugins.backends.arguments import parse_hparams
from domainbed_plugins.recording.options import RecordOptions
from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs import paths
from nacme.criteria.recorded import chosen_criteria
from nacme.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RecordOptions):
    """What the plugin adds to DomainBed's arguments.

    Attributes
    ----------
    eval_splits : {"all", "fast"}
        ``"fast"`` leaves out the training environments' ``in`` splits, unless coverage is measured there. It
        draws other random numbers than DomainBed does.
    n_workers : int or "auto", optional
        Workers of each loader; ``"auto"`` shares out the machine's cores. None: the data set's.
    keep : sequence of str
        Which saved checkpoints stay on disk: see `domainbed_plugins.runs.keep`. None given: all that are saved.
    average : sequence of {"sma", "ema"}
        Averages of the weights to keep beside the run: see `domainbed_plugins.training.averages`.
    average_from : int or float
        The step that averages start after; a float is a part of the steps.
    average_decay : float
        Of ``ema``, a step.
    on_step : callable, optional
        Called after each step with ``(step, n_steps)``.
    """

    eval_splits: str = "all"
    n_workers: int | str | None = None
    keep: Sequence[str] = ()
    average: Sequence[str] = ()
    average_from: int | float = 0.4
    average_decay: float = 0.995
    on_step: Callable[[int, int], None] | None = None


def comparable(args: Mapping[str, Any], options: TrainOptions) -> dict[str, str]:
    """Write down what must not change between the parts of a run; directories may.

    Parameters
    ----------
    args : mapping
    options : TrainOptions

    Returns
    -------
    dict of str to str
        JSON, by flag or field name.
    """
    kept = {key: value for key, value in args.items() if key not in ("data_dir", "output_dir")}
    asked = options.as_json()
    kept["nac"] = {**asked["settings"], "split": asked["split"], "layers": asked["layers"]}
    kept["nac_grid"] = asked["grid"]
    kept["keep"] = sorted(options.keep)
    kept["criteria"] = {"names": options.criteria, "target_unlabeled": options.target_unlabeled}
    kept["eval_splits"] = options.eval_splits
    if options.average:
        kept["average"] = [sorted(options.average), options.average_from, options.average_decay]
    return {key: json.dumps(value, sort_keys=True) for key, value in kept.items()}


def check_same(directory: Path, state: Mapping[str, Any], args: Mapping[str, Any], options: TrainOptions) -> None:
    """Refuse to go on with other settings than a run was begun with.

    Parameters
    ----------
    directory : path
    state, args, options

    Raises
    ------
    ConfigError
    """
    before, now = state["settings"], comparable(args, options)
    for key in {**now, **before}:
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{directory} was begun with {key} = {before.get(key)}, not {now.get(key)}; choose another "
                "--output_dir, or delete it to start anew"
            )


def check_finished(directory: Path, args: Mapping[str, Any], options: TrainOptions) -> None:
    """Refuse to take a finished run for one with other settings, as far as its records tell them.

    Parameters
    ----------
    directory : path
    args, options

    Raises
    ------
    ConfigError
    """
    record = run_files.first_record(directory)
    before, nac = record.get("args"), record.get("nac")
    told = before if isinstance(before, dict) else {}
    pairs = [
        (key, told[key], value)
        for key, value in args.items()
        if key in told and key not in ("data_dir", "output_dir", "hparams")
    ]
    pairs.append(("hparams", parse_hparams(told.get("hparams")), parse_hparams(args["hparams"])))
    if isinstance(nac, dict):
        asked = {**options.settings.as_json(), "split": options.split}
        if not (options.layers is None or isinstance(options.layers, str)):
            asked["layers"] = list(options.layers)
        pairs += [(key, nac[key], value) for key, value in asked.items() if key in nac]
        held = nac.get("grid") or ()
        pairs += [
            ("nac_grid", "without it", setting.key()) for setting in options.grid if setting.key() not in held
        ]
    names = chosen_criteria(options.criteria or [], options.target_unlabeled)
    pairs += [("criteria", "without it", name) for name in names if name not in record]
    if options.average and not (directory / paths.AVERAGES).exists():
        pairs.append(("average", "without it", sorted(options.average)))
    for key, was, wanted in pairs:
        if was != wanted:
            raise ConfigError(
                f"{directory} is done, and was trained with {key} = {json.dumps(was)}, not {json.dumps(wanted)}; "
                "choose another --output_dir, or delete it to start anew"
            )
