"""Train with DomainBed's own flags, recording coverage at every checkpoint: ``python -m domainbed_plugins.train``.

Source: the flags and their defaults are those of ``domainbed/scripts/train.py``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from domainbed_plugins.backends.arguments import NETWORK_FLAGS, STOCK_FLAGS, with_network
from nacme.errors import ConfigError, nearest

if TYPE_CHECKING:
    from nacme.settings import CoverageSettings


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
    add_coverage_flags(result)
    network = result.add_argument_group("network; each is a hyper-parameter, which --hparams sets as well")
    for name, options in NETWORK_FLAGS.items():
        network.add_argument(f"--{name}", **options)
    running = result.add_argument_group("running")
    running.add_argument(
        "--eval_splits",
        choices=["all", "fast"],
        default="all",
        help="fast: leave out the training environments' in splits, which no selection method reads",
    )
    running.add_argument(
        "--n_workers",
        type=worker_count,
        default=None,
        help="workers per loader, or 'auto' for this machine's; default: DomainBed's, since the count decides "
        "which samples and augmentations are drawn",
    )
    running.add_argument(
        "--keep",
        nargs="+",
        default=(),
        metavar="WHAT",
        help="save every checkpoint, but keep only these: best:nac_me best:val_acc last, or all",
    )
    running.add_argument("--domainbed", metavar="PATH", help="a DomainBed clone; default: DOMAINBED_ROOT")
    add_average_flags(result)
    return result


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
        "--nac_layers", nargs="+", default=None, metavar="LAYER", help="default: penultimate features"
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
        "layer=NAMES adds layers for these settings alone",
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


def add_average_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which averages of the weights are kept.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    averages = parser.add_argument_group("averages of the weights, beside the run")
    averages.add_argument(
        "--average", nargs="+", default=(), choices=["sma", "ema"], help="uniform mean, exponential moving average"
    )
    averages.add_argument(
        "--average_from",
        type=average_from,
        default=0.4,
        metavar="STEP",
        help="where they start: a step, a part of the steps (default: 0.4), or eoa (step 100)",
    )
    averages.add_argument("--average_decay", type=float, default=0.995, help="of ema; default: 0.995")


def average_from(text: str) -> int | float:
    """Read ``--average_from``: a step such as ``500``, a part of the steps such as ``0.4``, or ``eoa``."""
    if text == "eoa":
        return 100  # "Ensemble of Averages" (2110.10832) and ERM++
    return int(text) if text.isdigit() else float(text)


def coverage_settings(flags: argparse.Namespace) -> CoverageSettings:
    """Read the settings that the coverage flags ask for.

    Parameters
    ----------
    flags : argparse.Namespace

    Returns
    -------
    CoverageSettings

    Raises
    ------
    ConfigError
        If a value is out of range.
    """
    from nacme.settings import CoverageSettings

    return CoverageSettings(flags.nac_alpha, flags.nac_bins, flags.nac_fill, not flags.nac_all_samples)


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
    args["hparams"] = with_network(flags.hparams, vars(flags))

    from domainbed_plugins.backends import find as backends
    from domainbed_plugins.training.options import TrainOptions
    from domainbed_plugins.training.run import train
    from nacme.criteria.registry import load_criteria_module

    if flags.criteria_module:
        load_criteria_module(flags.criteria_module)
    settings = coverage_settings(flags)
    options = TrainOptions(
        settings=settings,
        grid=parse_grid(flags.nac_grid, settings),
        layers=flags.nac_layers,
        split=flags.nac_split,
        criteria=flags.criteria,
        target_unlabeled=flags.target_unlabeled,
        eval_splits=flags.eval_splits,
        n_workers=flags.n_workers,
        keep=flags.keep,
        average=flags.average,
        average_from=flags.average_from,
        average_decay=flags.average_decay,
    )
    train(backends.find(args["dataset"], flags.domainbed), args, options)


def parse_grid(texts: Sequence[str], settings: CoverageSettings) -> tuple[CoverageSettings, ...]:
    """Read ``--nac_grid``.

    Parameters
    ----------
    texts : sequence of str
        ``name=value,value``, with alpha, bins, fill or layer for a name.
    settings : CoverageSettings
        Where what is not named comes from.

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
    }
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name not in readers:
            raise ConfigError(f"--nac_grid {text!r}: {name!r} is unknown; {nearest(name, readers)}")
        try:
            axes[name] = [readers[name](value) for value in values.split(",")]
        except ValueError:
            raise ConfigError(f"--nac_grid {text!r}: {values!r} are not numbers with commas between") from None
    return make_grid(axes, settings)


def make_grid(axes: Mapping[str, Sequence[Any]], settings: CoverageSettings) -> tuple[CoverageSettings, ...]:
    """Multiply out the settings of a grid.

    Parameters
    ----------
    axes : mapping of str to sequence
        Values of fields of `CoverageSettings`. Layers come beside those that ``nac_me`` is measured at.
    settings : CoverageSettings
        Where what is not named comes from.

    Returns
    -------
    tuple of CoverageSettings
        Empty without axes.
    """
    if not axes:
        return ()
    axes = {**axes, "layer": [None, *axes.get("layer", ())]}
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


if __name__ == "__main__":
    from nacme.output import report_errors

    report_errors(main)
