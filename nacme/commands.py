"""What the commands ``select``, ``correlate``, ``report`` and ``criteria`` do once their flags are read."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nacme import compact
from nacme.candidates import RAW, kinds, of_kinds
from nacme.criteria.expressions import split
from nacme.criteria.registry import all_criteria, default_criteria, held_controls, load_criteria_module
from nacme.errors import ConfigError
from nacme.output import Format, said_after, write_frame, write_lines
from nacme.system.text import printable

if TYPE_CHECKING:
    import pandas as pd

    from nacme.study.selection import Per
    from nacme.targets import Targets


def run_select(
    sweep: Path,
    criterion: Sequence[str] | None,
    per: Per,
    form: Format,
    *,
    targets: Targets | None = None,
    candidates: Sequence[str] | None = None,
    strict: bool = False,
    modules: Sequence[str] | None = None,
    wide: bool = False,
) -> None:
    """Print the chosen checkpoints of a sweep."""
    from nacme.study.selection import TIE_RULE, select
    from nacme.targets import observations

    with said_after(every=wide) as note:
        df = _load(sweep, modules, note, strict)
        names = split_names(criterion) or default_criteria(df, oracle=True)
        wanted = split_names(candidates) or None
        _say_degenerate(df, names, note)
        _say_candidates(of_kinds(df, wanted), note)
        table = select(df, names, per, targets=targets, candidates=wanted)
        if taken := observations(df, targets)[1]:
            note(taken)
        if none := int(table["no_choice"].sum()):
            note(
                f"{none} of {len(table)} choices are no choice: more than half of the candidates tie, and a rule "
                f"decides ({TIE_RULE})"
            )
        if form == "table" and not wide:
            width = compact.terminal_width()
            write_lines(compact.lines_of(compact.compact_choices(table, width), width))
        else:
            write_frame(table, form)


def run_correlate(
    sweep: Path,
    criterion: Sequence[str] | None,
    population: Per,
    form: Format,
    *,
    include_step0: bool,
    seed: int,
    pool_algorithms: bool,
    targets: Targets | None = None,
    authors_way: bool = False,
    candidates: Sequence[str] | None = None,
    strict: bool = False,
    modules: Sequence[str] | None = None,
    wide: bool = False,
) -> None:
    """Print the rank correlations of a sweep; what was left out or undefined goes to standard error."""
    from nacme.study.authors import authors_table
    from nacme.study.correlation import rank_correlation

    if authors_way and (targets == "each" or population == "sweep" or pool_algorithms or candidates):
        raise ConfigError(
            "--authors_way looks at the mean over targets within each run; leave --targets each, "
            "--population sweep, --pool_algorithms and --candidates out"
        )
    wanted = split_names(candidates) or [RAW]
    if len(wanted) > 1:
        raise ConfigError(
            f"--candidates {','.join(wanted)}: a correlation is among candidates of one kind; name one"
        )
    with said_after(every=wide) as note:
        df = _load(sweep, modules, note, strict)
        names = split_names(criterion)
        if not names:
            controls = held_controls(df)
            names = [*default_criteria(df), *controls]
            if controls:
                note(f"controls, which no finding about coverage may fall behind: {', '.join(controls)}")
        _say_degenerate(df, names, note)
        if authors_way:
            table = authors_table(df, names)
        else:
            table = rank_correlation(
                df,
                names,
                population,
                include_step0=include_step0,
                seed=seed,
                pool_algorithms=pool_algorithms,
                targets=targets,
                candidate=wanted[0],
            )
        for text in table.attrs["notes"]:
            note(text)
        if form == "table" and not wide and not authors_way:
            width = compact.terminal_width()
            write_lines(compact.lines_of(compact.compact_correlations(table, width), width))
        else:
            write_frame(table, form)


def run_report(
    sweep: Path,
    out: Path,
    criterion: Sequence[str] | None,
    *,
    export: Path | None,
    include_step0: bool,
    seed: int,
    targets: Targets | None = None,
    strict: bool = False,
    modules: Sequence[str] | None = None,
) -> None:
    """Write the report of a sweep and print where it is."""
    from nacme.report.write import write_report

    with said_after() as note:
        df = _load(sweep, modules, note, strict)
        names = split_names(criterion) or None
        _say_degenerate(df, names or default_criteria(df), note)
        written = write_report(
            df,
            out,
            criteria=names,
            export=export,
            command=shlex.join(["nacme", *sys.argv[1:]]),
            include_step0=include_step0,
            seed=seed,
            targets=targets,
        )
    if str(written) != "-":
        print(printable(written))


def run_recommend(sweep: Path, form: Format, *, one_network: bool, targets: Targets | None = None) -> None:
    """Print the candidate to ship for each data set and test env."""
    from nacme.study.recommendation import recommend

    with said_after() as note:
        df = _load(sweep, None, note)
        _say_degenerate(df, default_criteria(df), note)
        if (found := kinds(df)) == [RAW]:
            note("there are raw checkpoints only; 'nacme average' makes further candidates from saved ones")
        else:
            note(f"candidates: {', '.join(found)}")
        write_frame(recommend(df, one_network=one_network, targets=targets), form)


def run_criteria(form: Format, *, modules: Sequence[str] | None = None) -> None:
    """Print the registry."""
    import pandas as pd

    for module in modules or ():
        load_criteria_module(module)
    rows = [
        {
            "name": c.name,
            "direction": "higher" if c.higher_is_better else "lower",
            "sees": c.sees,
            "control": c.control,
            "needs": list(c.needs) if form == "json" else " ".join(c.needs),
            "cost": c.cost,
            "source": c.source,
            "description": c.description,
        }
        for c in all_criteria().values()
    ]
    write_frame(pd.DataFrame(rows), form)


def split_names(given: Sequence[str] | None) -> list[str]:
    """Split repeated and comma-separated names (not inside parentheses), in order and without repetition.

    Raises
    ------
    ConfigError
        If a name is empty.
    """
    names = [name for text in given or () for name in split(text)]
    if not all(names):
        raise ConfigError("--criterion has an empty name; give names with single commas between them")
    return list(dict.fromkeys(names))


def _load(
    sweep: Path, modules: Sequence[str] | None, note: Callable[[str], None], strict: bool = False
) -> pd.DataFrame:
    """Read a sweep and note what a reader of its numbers has to know."""
    from nacme.records.load import load_sweep

    for module in modules or ():  # before reading: a new criterion may have a column in the records
        load_criteria_module(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        df = load_sweep(sweep, strict=strict)
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    warned = {str(warning.message) for warning in caught}
    for exclusion in df.attrs["exclusions"]:
        if exclusion not in warned:
            note(f"left out: {exclusion}")
    runs = df.drop_duplicates("run")
    if unfinished := int((~runs["done"]).sum()):
        note(f"{unfinished} of {len(runs)} runs are not finished")
    return df


def _say_degenerate(df: pd.DataFrame, names: Sequence[str], note: Callable[[str], None]) -> None:
    """Note where coverage only counts samples, if coverage is asked for."""
    from nacme.records.load import degenerate_shares

    if not any("nac_me" in name for name in names):
        return
    if faults := degenerate_shares(df):
        note(
            "coverage is degenerate "
            + " and ".join(f"at {share:.0%} of the checkpoints, where {fault}" for fault, share in faults.items())
            + ", so nac_me there is little more than a count of correct samples; measure again with 'nacme score' "
            "--nac_alpha auto --nac_fill 0.02, or rank by nac_me_robust"
        )


def _say_candidates(df: pd.DataFrame, note: Callable[[str], None]) -> None:
    """Note what is chosen among, where that is more than the runs' own checkpoints."""
    if (found := kinds(df)) != [RAW]:
        note(f"candidates: {', '.join(found)}; --candidates raw takes the runs' own checkpoints only")
