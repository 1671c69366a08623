"""Measuring the checkpoints of finished runs, whoever trained them: ``nacme score``.

Writes ``nac.jsonl`` beside each ``results.jsonl``, one line for each step, and changes nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from domainbed_plugins.backends.arguments import FlagParser
from domainbed_plugins.machine import keep_freed_memory
from domainbed_plugins.recording.flags import add_coverage_flags, record_options
from domainbed_plugins.scoring.options import ScoreOptions
from domainbed_plugins.scoring.run import Outcome, score
from nacme.errors import NacmeWarning, SweepError
from nacme.output import say
from nacme.records.run import RESULTS


def parser() -> argparse.ArgumentParser:
    """Build the parser.

    Returns
    -------
    argparse.ArgumentParser
    """
    result = FlagParser(
        prog="nacme score",
        description="Measure the saved checkpoints of a sweep (or of one run) and write nac.jsonl beside each "
        "results.jsonl. Checkpoints measured already with the same settings are skipped.",
    )
    result.add_argument("sweep", metavar="SWEEP", type=Path)
    result.add_argument("--data_dir", help="the data, as for training")
    add_coverage_flags(result)
    running = result.add_argument_group("running")
    running.add_argument("--cache_gb", type=float, help="memory for decoded data; default: half of what is free")
    running.add_argument("--n_workers", type=int, help="processes that decode images; default: by the cores")
    running.add_argument(
        "--models",
        type=int,
        metavar="N",
        help="checkpoints measured at a time; default: by free memory, up to 8",
    )
    running.add_argument(
        "--overwrite",
        action="store_true",
        help="measure all anew and forget what was measured before; default: add to it",
    )
    running.add_argument("--domainbed", metavar="PATH", help="a DomainBed clone; default: DOMAINBED_ROOT")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags and measure.

    Parameters
    ----------
    argv : sequence of str, optional
        None: the process's arguments.

    Raises
    ------
    NacmeError
        For a user's mistake, or if a checkpoint could not be measured.
    """
    flags = parser().parse_args(argv)
    options = ScoreOptions(**vars(record_options(flags)))
    keep_freed_memory()
    outcome = score(
        flags.sweep,
        flags.data_dir,
        options,
        domainbed=flags.domainbed,
        cache_gb=flags.cache_gb,
        n_workers=flags.n_workers,
        models=flags.models,
        overwrite=flags.overwrite,
    )
    _report(outcome)


def _report(outcome: Outcome) -> None:
    """Say what became of the checkpoints, on standard error; fail if one could not be measured."""
    import warnings

    say(f"{outcome.measured} measured, {outcome.skipped} done before")
    if outcome.degenerate:
        warnings.warn(
            f"coverage is degenerate at {outcome.degenerate} of {outcome.measured} checkpoints: NAC-ME says "
            "little more there than how many samples were counted; try --nac_alpha auto, or --nac_grid",
            NacmeWarning,
            stacklevel=2,
        )
    if outcome.apart:
        warnings.warn(
            f"at {outcome.apart} of {outcome.measured} checkpoints validation accuracies differ from the recorded "
            f"ones, by up to {100 * outcome.accuracy_gap:.1f} points: expected where training augmented its "
            "validation images or predicting draws random numbers; else check --data_dir",
            NacmeWarning,
            stacklevel=2,
        )
    if outcome.hidden:
        warnings.warn(
            f"training recorded coverage of {outcome.hidden} of these checkpoints with other settings: its nac_me "
            f"stands in {RESULTS} and goes before the one measured now; --nac_grid gives keys of their own",
            NacmeWarning,
            stacklevel=2,
        )
    if outcome.failures:
        for failure in outcome.failures:
            say(f"{failure}")
        raise SweepError(
            f"{len(outcome.failures)} of {len(outcome.failures) + outcome.measured + outcome.skipped} checkpoints "
            "could not be measured; the others were"
        )
