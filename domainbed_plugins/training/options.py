"""What the plugin adds to the arguments of a run, and what of it must not change between the parts of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nacme.errors import ConfigError
from nacme.settings import CoverageSettings


@dataclass(frozen=True)
class TrainOptions:
    """What the plugin adds to DomainBed's arguments.

    Attributes
    ----------
    settings : CoverageSettings
    grid : tuple of CoverageSettings
        Further settings to record from the same pass.
    layers : sequence of str, optional
        None: penultimate features.
    split : {"out", "in"}
        The training environments' splits that coverage is measured on.
    criteria : list of str, optional
        Criteria to record beside NAC-ME and the validation loss. None: all that take no further pass.
    target_unlabeled : bool
        Whether to record criteria that look at unlabelled target data, the test environments' ``out`` splits.
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

    settings: CoverageSettings = field(default_factory=CoverageSettings)
    grid: tuple[CoverageSettings, ...] = ()
    layers: list[str] | None = None
    split: str = "out"
    criteria: list[str] | None = None
    target_unlabeled: bool = False
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
    kept["nac"] = {**asdict(options.settings), "split": options.split, "layers": options.layers}
    kept["nac_grid"] = [asdict(settings) for settings in options.grid]
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
