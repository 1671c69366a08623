"""Does a checkpoint notice that an input comes from elsewhere? ``nacme detect``.

Detectors are fitted on the run's in-distribution training splits, and tell its in-distribution validation splits
from the test environments (covariate shift) and from another data set (semantic shift).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from domainbed_plugins.backends.arguments import FlagParser
from domainbed_plugins.detection.options import DETECTORS, DetectOptions
from domainbed_plugins.detection.run import detect
from nacme.records.run import DETECTED


def parser() -> argparse.ArgumentParser:
    """Build the parser.

    Returns
    -------
    argparse.ArgumentParser
    """
    result = FlagParser(
        prog="nacme detect",
        description="Tell in-distribution validation images from the test environments, and from another data "
        "set, by detectors fitted on the training environments. Prints a table and adds the numbers to the run's "
        f"{DETECTED}.",
    )
    result.add_argument(
        "path",
        metavar="RUN|CHECKPOINT",
        type=Path,
        help="a saved model, a run (its last saved model), or a sweep (the last one of each run)",
    )
    result.add_argument("--data_dir", help="the data, as for training")
    result.add_argument(
        "--detector", nargs="+", action="extend", metavar="NAME", help=f"{', '.join(DETECTORS)}; default: all"
    )
    result.add_argument("--ood", metavar="DATASET", help="another data set to tell apart: semantic shift")
    result.add_argument("--ood_data_dir", metavar="DIR", help="where it lies; default: --data_dir")
    result.add_argument("--every_checkpoint", action="store_true", help="all saved models, not the last alone")
    result.add_argument(
        "--search",
        choices=["jigsaw", "noise", "rotate", "mix", "none"],
        default="jigsaw",
        help="search settings on training images against their transformed selves; none: the published settings",
    )
    result.add_argument("--fit_samples", type=int, default=1000, help="training images to fit on, balanced")
    result.add_argument("--ood_samples", type=int, default=2000, help="images of --ood to score, at most")
    result.add_argument("--n_boot", type=int, default=1000, help="bootstrap resamples of the intervals")
    result.add_argument("--seed", type=int, default=0, help="of the images drawn and of the bootstrap")
    result.add_argument("--format", choices=["table", "csv", "json"], default="table")
    result.add_argument("--out", metavar="DIR", type=Path, help="also histograms of the scores, as PNG")
    result.add_argument("--domainbed", metavar="PATH", help="a DomainBed clone; default: DOMAINBED_ROOT")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags, detect and print.

    Parameters
    ----------
    argv : sequence of str, optional
        None: the process's arguments.

    Raises
    ------
    NacmeError
        For a user's mistake, or if a checkpoint could not be examined.
    """
    flags = parser().parse_args(argv)
    options = DetectOptions(
        detectors=tuple(dict.fromkeys(flags.detector or ())),
        ood=flags.ood,
        ood_data_dir=flags.ood_data_dir,
        search=flags.search,
        fit_samples=flags.fit_samples,
        ood_samples=flags.ood_samples,
        n_boot=flags.n_boot,
        seed=flags.seed,
    )
    table = detect(
        flags.path,
        flags.data_dir,
        options,
        every_checkpoint=flags.every_checkpoint,
        out=flags.out,
        domainbed=flags.domainbed,
    )

    from nacme.output import write_frame

    write_frame(table, flags.format)


if __name__ == "__main__":
    from nacme.output import report_errors

    report_errors(main)
