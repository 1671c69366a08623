"""DomainBed's tables of results with those of the recorded criteria added: ``python -m ...collect_results``.

Unlike DomainBed's script it prints only, and writes nothing into the input folder.

Source: ``domainbed/scripts/collect_results.py``, whose functions make the tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domainbed_plugins.backends.arguments import FlagParser
from nacme.errors import SweepError
from nacme.output import say

LATEX_HEAD = r"""\documentclass{article}
\usepackage{booktabs}
\usepackage{adjustbox}
\begin{document}
\section{Full DomainBed results}
% Total records:"""


def parser() -> argparse.ArgumentParser:
    """Build the parser.

    Returns
    -------
    argparse.ArgumentParser
    """
    result = FlagParser(
        prog="python -m domainbed_plugins.collect_results",
        description="Print DomainBed's tables of results, and one set for each recorded criterion",
    )
    result.add_argument("--input_dir", type=Path, required=True, help="a sweep directory; it is only read")
    result.add_argument("--latex", action="store_true")
    result.add_argument("--auto_lr", action="store_true", help="as DomainBed's: its auto_lr method alone")
    result.add_argument(
        "--criteria",
        nargs="*",
        metavar="NAME",
        help="recorded criteria to add; none after the flag: DomainBed's tables alone; default: all on record",
    )
    result.add_argument("--domainbed", metavar="PATH", help="a DomainBed clone; default: DOMAINBED_ROOT")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags and print the tables.

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

    from domainbed_plugins.backends import find as backends
    from domainbed_plugins.backends import image_folders
    from domainbed_plugins.selection_methods import recorded_in, selection_method

    testbed = backends.domainbed(flags.domainbed)
    stock = backends.module("model_selection")
    tables = backends.module("scripts.collect_results")
    loaded = load_records(flags.input_dir)
    names = {record["args"]["dataset"] for record in loaded}
    for name in names:
        image_folders.add(testbed, name)
    if unknown := names - set(testbed.datasets.DATASETS):
        left_out = f"{', '.join(sorted(unknown))}: no data set of DomainBed's"
        if unknown == names:
            raise SweepError(f"{flags.input_dir} has no table in DomainBed: {left_out}; use nacme select")
        say(f"{left_out}; left out")
    records = backends.module("lib.query").Q([r for r in loaded if r["args"]["dataset"] not in unknown])

    if flags.auto_lr:
        methods = [stock.IIDAutoLRAccuracySelectionMethod]
    else:
        methods = [
            stock.IIDAccuracySelectionMethod,
            stock.LeaveOneOutSelectionMethod,
            stock.OracleSelectionMethod,
        ]
        criteria = recorded_in(records) if flags.criteria is None else flags.criteria
        methods += [selection_method(criterion) for criterion in criteria]

    print(LATEX_HEAD if flags.latex else "Total records:", len(records))
    for method in methods:
        if flags.latex:
            print(f"\n\\subsection{{Model selection: {_in_latex(method.name)}}}")
        tables.print_results_tables(records, method, flags.latex)
    if flags.latex:
        print("\\end{document}")


def load_records(sweep: Path) -> list[dict[str, Any]]:
    """Read a sweep's records with what ``nac.jsonl`` adds to them.

    Parameters
    ----------
    sweep : Path

    Returns
    -------
    list of dict
        In the order of the run directories' names. What cannot be read is named on standard error.

    Raises
    ------
    SweepError
        If there are none.
    """
    from domainbed_plugins.runs.paths import RESULTS
    from domainbed_plugins.runs.records import read_records
    from nacme.records.load import run_names

    records: list[dict[str, Any]] = []
    for name in run_names(sweep) if sweep.is_dir() else ():
        if not (sweep / name / RESULTS).exists():
            continue
        found = read_records(sweep / name)
        for fault in found.faults:
            say(f"{fault}")
        records += found.by_step.values()
    if not records:
        raise SweepError(f"{sweep} holds no records; give the directory that holds the runs' directories")
    return records


def _in_latex(name: str) -> str:
    return name.replace("_", "\\_")


if __name__ == "__main__":
    from nacme.output import report_errors

    report_errors(main)
