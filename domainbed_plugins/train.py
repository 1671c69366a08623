"""Train with DomainBed's own flags, recording coverage at every checkpoint: ``python -m domainbed_plugins.train``.

Source: the flags and their defaults are those of ``domainbed/scripts/train.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from domainbed_plugins.backends.arguments import NETWORK_FLAGS, STOCK_FLAGS, FlagParser, with_network
from domainbed_plugins.recording.flags import add_coverage_flags, record_options, worker_count


def parser() -> argparse.ArgumentParser:
    """Build the parser: DomainBed's flags and the plugin's.

    Returns
    -------
    argparse.ArgumentParser
    """
    result = FlagParser(
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

    options = TrainOptions(
        **vars(record_options(flags)),
        eval_splits=flags.eval_splits,
        n_workers=flags.n_workers,
        keep=flags.keep,
        average=flags.average,
        average_from=flags.average_from,
        average_decay=flags.average_decay,
    )
    train(backends.find(args["dataset"], flags.domainbed), args, options)


if __name__ == "__main__":
    from nacme.output import report_errors

    report_errors(main)
