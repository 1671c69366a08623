"""The flags that say what is recorded, and how their values are read."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from domainbed_plugins.recording.options import RecordOptions, read_layers
from nacme.errors import ConfigError, nearest
from nacme.settings import CRAFT_SAMPLES, SPLITS, CoverageSettings

#: Each costs a pass over the states.
MOST_SETTINGS = 10_000


def add_coverage_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how coverage is measured.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    ours = parser.add_argument_group("coverage")
    ours.add_argument(
        "--nac_split", choices=["out", "in"], default="out", help="splits that coverage is measured on"
    )
    ours.add_argument(
        "--nac_layers",
        nargs="+",
        default=None,
        metavar="LAYER",
        help="'authors' (default): where NAC-ME's authors measure the network; 'penultimate'; or dotted paths",
    )
    ours.add_argument("--nac_alpha", type=alpha_value, default=0.1, help="steepness of the state, or 'auto'")
    ours.add_argument("--nac_bins", type=int, default=50, help="M, the number of bin edges")
    ours.add_argument("--nac_fill", type=fill_value, default=500, help="O: a count (500) or a fraction (0.08)")
    ours.add_argument("--nac_all_samples", action="store_true", help="count incorrectly classified samples too")
    ours.add_argument(
        "--nac_grid",
        nargs="+",
        default=(),
        metavar="NAME=VALUES",
        help="settings to record besides, from the same pass: alpha=0.1,1,auto bins=50,100 fill=500,0.08; "
        "layer=NAMES adds layers for these settings alone, split=out,in takes them on both splits",
    )
    rivals = parser.add_argument_group("other criteria")
    rivals.add_argument(
        "--criteria",
        nargs="*",
        default=None,
        metavar="NAME",
        help="criteria to record beside nac_me and val_loss; default: all that take no further pass",
    )
    rivals.add_argument(
        "--target_unlabeled",
        action="store_true",
        help="also record criteria that look at unlabelled target data: the test environments' out splits",
    )
    rivals.add_argument(
        "--criteria_module", default=None, metavar="MODULE", help="a module or .py file with criteria of your own"
    )
    rivals.add_argument(
        "--craft_samples",
        type=int,
        default=CRAFT_SAMPLES,
        metavar="N",
        help=f"validation images that the criterion craft_acc looks at; default: {CRAFT_SAMPLES}",
    )


def record_options(flags: argparse.Namespace) -> RecordOptions:
    """Read what the flags of `add_coverage_flags` ask for.

    Parameters
    ----------
    flags : argparse.Namespace

    Returns
    -------
    RecordOptions

    Raises
    ------
    ConfigError
        If a value is out of range.
    """
    settings = CoverageSettings(flags.nac_alpha, flags.nac_bins, flags.nac_fill, not flags.nac_all_samples)
    return RecordOptions(
        settings,
        grid=parse_grid(flags.nac_grid, settings, flags.nac_split),
        layers=read_layers(flags.nac_layers),
        split=flags.nac_split,
        criteria=flags.criteria,
        target_unlabeled=flags.target_unlabeled,
        criteria_module=flags.criteria_module,
        craft_samples=flags.craft_samples,
    )


def parse_grid(
    texts: Sequence[str], settings: CoverageSettings, split: str = "out"
) -> tuple[CoverageSettings, ...]:
    """Read ``--nac_grid``.

    Parameters
    ----------
    texts : sequence of str
        ``name=value,value``, with alpha, bins, fill, layer or split for a name.
    settings : CoverageSettings
        Where what is not named comes from.
    split : {"out", "in"}
        That of ``nac_me``.

    Returns
    -------
    tuple of CoverageSettings
        See `make_grid`.

    Raises
    ------
    ConfigError
        For another name, or a value that is no number.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "alpha": alpha_value,
        "bins": int,
        "fill": fill_value,
        "layer": str,
        "split": _split_value,
    }
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name not in readers:
            raise ConfigError(f"--nac_grid {text!r}: {name!r} is unknown; {nearest(name, readers)}")
        try:
            axes[name] = [readers[name](value) for value in values.split(",")]
        except ValueError:
            what = "'out' and 'in'" if name == "split" else "numbers"
            raise ConfigError(f"--nac_grid {text!r}: {values!r} are not {what} with commas between") from None
    return make_grid(axes, settings, split)


def make_grid(
    axes: Mapping[str, Sequence[Any]], settings: CoverageSettings, split: str = "out"
) -> tuple[CoverageSettings, ...]:
    """Multiply out the settings of a grid.

    Parameters
    ----------
    axes : mapping of str to sequence
        Values of fields of `CoverageSettings`. Layers come beside those that ``nac_me`` is measured at.
    settings : CoverageSettings
        Where what is not named comes from.
    split : {"out", "in"}
        That of ``nac_me``: settings for it go by their names without a split.

    Returns
    -------
    tuple of CoverageSettings
        Empty without axes.
    """
    if not axes:
        return ()
    axes = {**axes, "layer": [None, *axes.get("layer", ())]}
    axes["split"] = [None if value == split else value for value in axes.get("split", (split,))]
    if (count := math.prod(map(len, axes.values()))) > MOST_SETTINGS:
        raise ConfigError(f"the grid has {count:,} settings; at most {MOST_SETTINGS:,} can be recorded at once")
    return tuple(replace(settings, **dict(zip(axes, point))) for point in itertools.product(*axes.values()))


def alpha_value(text: str) -> float | str:
    """Read an alpha: a number, or ``auto``."""
    return text if text == "auto" else float(text)


def fill_value(text: str) -> int | float:
    """Read a fill: a count such as ``500``, or a fraction such as ``0.08``."""
    return int(text) if text.lstrip("-").isdigit() else float(text)


def worker_count(text: str) -> int | str:
    """Read a number of workers, or ``auto``."""
    return text if text == "auto" else int(text)


def _split_value(text: str) -> str:
    if text not in SPLITS:
        raise ValueError
    return text
