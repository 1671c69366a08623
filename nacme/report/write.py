"""The report of a sweep: one self-contained page of verdicts, figures and tables.

Every statistic comes from `nacme.study`; this module lays them out and writes files.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

import jinja2
import pandas as pd
from tqdm import tqdm

from nacme import plots
from nacme.criteria.registry import default_criteria
from nacme.errors import ConfigError
from nacme.plots.style import counted
from nacme.report.candidates import candidates_section
from nacme.report.controls import controls_section
from nacme.report.findings import STEPS, Findings, Population, gather
from nacme.report.page import Section, draw_panels, export_section, write_file
from nacme.report.settings import coverage_section, settings_section
from nacme.report.tables import Column, Table, decimal, integer, p_value, percent, points, text, with_interval
from nacme.report.verdicts import cautions, degenerate, unfilled, verdicts
from nacme.study.selection import TIE_RULE
from nacme.system.files import refuse_unusual
from nacme.targets import Targets, observations

MAX_ROWS = 300
_WITHIN = {"run": "within a run", "sweep": "across the sweep"}
_CELL = ["dataset", "test_env"]


def write_report(
    df: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    criteria: Sequence[str] | None = None,
    export: str | os.PathLike[str] | None = None,
    command: str | None = None,
    include_step0: bool = False,
    n_boot: int = 1000,
    seed: int = 0,
    targets: Targets | None = None,
) -> Path:
    """Write the report of a sweep as one HTML file that needs nothing else.

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it.
    path : path-like
        Where the page goes; its directory is made if need be. ``"-"``: standard output.
    criteria : sequence of str, optional
        Criteria to report; without it those of `nacme.criteria.default_criteria`. The first is the one that is
        judged, against ``val_acc`` (against the second where ``val_acc`` is the first or absent).
    export : path-like, optional
        Directory for every figure as PNG and PDF and every table as CSV and LaTeX.
    command : str, optional
        The command that the page names as its maker.
    include_step0 : bool
        Whether the untrained network counts as a checkpoint in the rank correlations.
    n_boot, seed : int
        Bootstrap resamples over runs, and their seed.
    targets : {"each", "mean"}, optional
        As for `nacme.select`: what is looked at where runs have several test envs.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ConfigError
        If a file cannot be written, or `criteria` is empty.
    CriterionError
        If a criterion is unknown or the records do not hold it.
    SweepError
        If there are no checkpoints.
    """
    if str(path) != "-":
        try:  # before the work
            refuse_unusual(path)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}; choose another place") from error
    names = list(dict.fromkeys(default_criteria(df) if criteria is None else criteria))
    if not names:
        raise ConfigError("criteria is empty; name at least one criterion")
    lay_out: list[Callable[[Findings], Section | None]] = [
        _selection,
        partial(_ranking, population="run", title="Ranking the checkpoints of a run"),
        partial(_ranking, population="sweep", title="Ranking all checkpoints of a sweep"),
        partial(controls_section, df=observations(df, targets)[0], include_step0=include_step0),
        _scatter,
        _curves,
        partial(settings_section, df=observations(df, targets)[0], whole=df, include_step0=include_step0),
        coverage_section,
        partial(candidates_section, df=df, targets=targets),
    ]
    with tqdm(total=STEPS + len(lay_out), desc="report", disable=None, leave=False) as bar:
        findings = gather(
            df, names, include_step0=include_step0, n_boot=n_boot, seed=seed, targets=targets, tick=bar.update
        )
        sections = []
        for lay in lay_out:
            if (section := lay(findings)) is not None:
                sections.append(section)
            bar.update()
    rows = findings.rows
    datasets = sorted(rows["dataset"].unique())
    page = _template().render(
        title="Checkpoint selection on "
        + (" and ".join(datasets) if len(datasets) < 3 else f"{len(datasets)} data sets"),
        subtitle=_subtitle(rows, names),
        verdicts=verdicts(findings),
        degenerate=degenerate(rows),
        unfilled=unfilled(rows),
        sections=sections,
        max_rows=MAX_ROWS,
        cautions=cautions(findings),
        notes=findings.notes,
        command=command,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        versions=_versions(),
    )
    if export is not None:
        for section in sections:
            export_section(section, Path(export))
    content = page.encode(errors="backslashreplace")
    if str(path) == "-":
        sys.stdout.buffer.write(content)
        return Path("-")
    return write_file(Path(path), content)


def _template() -> jinja2.Template:
    source = (files("nacme") / "templates" / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source)


def _versions() -> dict[str, str]:
    """Return the versions that the numbers depend on; torch is asked for, not imported."""
    found = {"nacme": "", "python": platform.python_version()}
    for package in ("nacme", "torch", "numpy", "pandas", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _subtitle(rows: pd.DataFrame, names: Sequence[str]) -> str:
    algorithms = sorted(rows["algorithm"].unique())
    return (
        ", ".join(
            [
                counted(rows["run"].nunique(), "run"),
                counted(len(rows), "checkpoint"),
                counted(len(rows[_CELL].drop_duplicates()), "test env"),
                counted(rows["trial_seed"].nunique(), "trial"),
                algorithms[0] if len(algorithms) == 1 else f"{len(algorithms)} algorithms",
            ]
        )
        + f". Criteria: {', '.join(names)}."
    )


def _selection(findings: Findings) -> Section:
    """Lay out what each criterion chose and what the choice cost."""
    labelled = [
        picks.assign(dataset=picks["dataset"] + f", {_WITHIN[per]}") for per, picks in findings.picks.items()
    ]
    order = [str(name) for name in pd.concat(labelled).groupby("criterion")["regret"].mean().sort_values().index]
    figure = draw_panels(
        "regret",
        "Regret: the best test accuracy among the candidates minus that of the choice. Within a run, a choice is "
        "made in each run (stopping time); across the sweep, in each test env and trial among all checkpoints of "
        "all runs (hyper-parameters and stopping time). A dot is a choice, the bar the mean of the choices plus "
        "and minus its standard error.",
        [(cell, _regret_words(cell)) for _, cell in pd.concat(labelled).groupby("dataset", sort=False)],
        lambda cell: plots.regret_plot(cell, order=order),
        lambda: plots.regret_plot(pd.concat(labelled), order=order),
    )
    rival = findings.rival
    gain, record = [], []
    if rival is not None:
        gain = [replace(points(f"gain over {rival}", f"gain_over_{rival}"), blank="–")]
        record = [
            replace(column, blank="–")
            for column in (
                integer("wins", f"wins_over_{rival}"), integer("losses", f"losses_to_{rival}"),
                integer("ties", f"ties_with_{rival}"), p_value("sign test p", f"sign_p_over_{rival}"),
            )
        ]  # fmt: skip
    summaries = [
        Table(
            f"summary-{per}",
            f"Choices {_WITHIN[per]}, averaged over test envs. Regret in points, plus and minus its standard "
            "error over the choices; beside it the regret to be expected if one of the tied best is drawn. A "
            "choice that rests on a tie of more than half of its candidates is no choice"
            + ("." if rival is None else f"; gain in points; wins count test envs with a gain over {rival}."),
            _without_self(table, rival),
            [
                text("criterion", "criterion"), percent("test accuracy", "top1_acc"),
                points("regret", "regret", "regret_error"), points("drawn from ties", "regret_over_ties"),
                *gain, *record, integer("no choice", "n_no_choice"), integer("of choices", "n_populations"),
                integer("test envs", "n_cells"),
            ],
        )
        for per, table in findings.summary.items()
    ]  # fmt: skip
    cells = [
        Table(
            f"quality-{per}",
            f"Choices {_WITHIN[per]} in each test env. Top k is the mean test accuracy of the k checkpoints that "
            "the criterion puts first.",
            _without_self(table, rival),
            [
                *_names(findings), text("criterion", "criterion"), percent("top 1", "top1_acc"),
                percent("top 3", "top3_acc"), percent("top 5", "top5_acc"), points("regret", "regret"),
                points("drawn from ties", "regret_over_ties"), decimal("tied", "n_tied"), *gain,
                integer("choices", "n_populations"), integer("undefined", "n_undefined"),
                integer("no choice", "n_no_choice"),
            ],
            folded=f"Test env by test env, {_WITHIN[per]}",
        )
        for per, table in findings.quality.items()
    ]  # fmt: skip
    choices = [
        Table(
            f"choices-{per}",
            f"Each criterion's choices, {_WITHIN[per]}; regret in points. Ties are broken by {TIE_RULE}; no "
            "choice: more than half of the candidates tie.",
            picks.assign(said=picks["no_choice"].map({True: "no choice", False: "choice"})),
            [
                *_names(findings), integer("trial", "trial_seed"), text("criterion", "criterion"),
                text("run", "run"), integer("step", "step"), percent("test accuracy", "test_acc"),
                percent("best possible", "oracle_acc"), points("regret", "regret"), integer("tied", "n_tied"),
                points("drawn from ties", "regret_over_ties"), text("a choice?", "said"),
            ],
            folded=f"All {len(picks):,} choices, {_WITHIN[per]}",
        )
        for per, picks in findings.picks.items()
    ]  # fmt: skip
    return Section("selection", "What each criterion selects", [figure], [*summaries, *cells, *choices])


def _without_self(table: pd.DataFrame, rival: str | None) -> pd.DataFrame:
    """Blank what the rival gains over itself."""
    compared = [c for c in table.columns if str(c).endswith((f"_over_{rival}", f"_to_{rival}", f"_with_{rival}"))]
    table = table.astype(dict.fromkeys(compared, float))
    table.loc[table["criterion"] == rival, compared] = float("nan")
    return table


def _names(findings: Findings, pooled: bool = False) -> list[Column]:
    """Return the columns that name a cell, without those that would say the same in every row."""
    columns = [] if findings.rows["dataset"].nunique() == 1 else [text("data set", "dataset")]
    if findings.rows["algorithm"].nunique() > 1 and not pooled:
        columns.append(text("algorithm", "algorithm"))
    numbered = pd.api.types.is_integer_dtype(findings.rows["test_env"])
    return [*columns, (integer if numbered else text)("test env", "test_env")]


def _ranking(findings: Findings, population: Population, title: str) -> Section:
    """Lay out how well each criterion ranks the checkpoints of a population."""
    table = findings.ranks[population]
    order = [str(n) for n in table.groupby("criterion")["kendall_tau"].mean().sort_values(ascending=False).index]
    what = (
        "Kendall tau-b between criterion and test accuracy within each run, averaged over runs"
        if population == "run"
        else "Kendall tau-b between criterion and test accuracy over all checkpoints of all runs"
    )
    cells = [(cell, _forest_words(cell)) for _, cell in table.groupby([*_CELL, "algorithm"], sort=True)]
    figure = draw_panels(
        f"correlation-{population}",
        f"{what}, with 95% intervals from resampling runs. Criteria are turned so that higher is better: right "
        "of zero, the criterion ranks as it should."
        + (" Algorithms are taken together." if findings.rows["algorithm"].nunique() > 1 else ""),
        cells,
        lambda cell: plots.correlation_forest(cell, order=order),
        lambda: plots.correlation_forest(table, order=order),
    )
    said = table["reason"].notna().any()
    numbers = Table(
        f"correlations-{population}",
        f"Rank correlation with test accuracy, {_WITHIN[population]}: 95% intervals in brackets. Checkpoints and "
        "runs are those for which it is defined; rho given step is the partial Spearman correlation given the "
        "training step.",
        table if said else table.drop(columns="reason"),
        [
            *_names(findings, pooled=True), text("criterion", "criterion"),
            decimal("Kendall tau", "kendall_tau", "kendall_low", "kendall_high"),
            decimal("Spearman rho", "spearman_rho", "spearman_low", "spearman_high"),
            decimal("weighted tau", "weighted_tau"), decimal("rho given step", "partial_spearman_step"),
            integer("checkpoints", "n_checkpoints"), integer("runs", "n_runs"),
            *([replace(text("undefined because", "reason"), blank="–")] if said else []),
        ],
    )  # fmt: skip
    versus = [_versus(findings, population)] if findings.rival is not None else []
    return Section(f"ranking-{population}", title, [figure], [numbers, *versus])


def _versus(findings: Findings, population: Population) -> Table:
    """Lay out the differences from the rival."""
    return Table(
        f"differences-{population}",
        f"Difference in Kendall tau from {findings.rival}, {_WITHIN[population]}, on the same resamples of runs. "
        "p is of a permutation test that swaps the two criteria "
        + ("run by run" if population == "run" else "in pairs of runs")
        + "; adjusted p is Holm's over this table, but for the primary comparison, nac_me with val_acc within "
        "runs, which is adjusted for test envs alone. Counts are of the runs and checkpoints where both are "
        "defined.",
        findings.comparisons[population],
        [
            *_names(findings, pooled=True), text("criterion", "criterion"),
            decimal("difference", "difference", "low", "high"), decimal("tau", "value"),
            decimal(f"tau of {findings.rival}", "baseline_value"), p_value("p", "p_value"),
            p_value("adjusted p", "p_holm"), integer("checkpoints", "n_checkpoints"), integer("runs", "n_runs"),
        ],
    )  # fmt: skip


def _scatter(findings: Findings) -> Section:
    """Lay out the judged criterion and its rival against test accuracy."""
    figures = []
    for name in dict.fromkeys((findings.judged, findings.rival)):
        if name is None:
            continue
        cells = [
            (cell, _scatter_words(findings, name, dataset, env))
            for (dataset, env), cell in findings.rows.groupby(_CELL, sort=True)
        ]
        figures.append(
            draw_panels(
                "scatter-" + re.sub(r"\W+", "-", name).strip("-"),
                f"{name} against test accuracy; a point is a checkpoint (step 0 included), darker is "
                "earlier in training.",
                cells,
                partial(plots.scatter, criterion=name),
                partial(plots.scatter, findings.rows, name),
            )
        )
    return Section("scatter", "Criterion against test accuracy", figures)


def _curves(findings: Findings) -> Section:
    """Lay out some runs' accuracies over training and where each criterion would have stopped."""
    picks = findings.picks["run"]
    cells = []
    for (dataset, env), cell in findings.rows.groupby(_CELL, sort=True):
        alt = (
            f"Test and validation accuracy over training steps, {dataset} test env {env}, for up to 3 of "
            f"{counted(cell['run'].nunique(), 'run')}, with the step that each criterion picks in each."
        )
        cells.append((cell, alt))
    figure = draw_panels(
        "curves",
        "Test (solid) and validation accuracy (dashed) of up to 3 runs per test env: those with the highest, the "
        "median and the lowest peak. Below, the step that each criterion picks in each run.",
        cells,
        lambda cell: plots.training_curves(cell, picks),
        lambda: plots.training_curves(findings.rows, picks),
    )
    return Section("training", "Training, and where each criterion stops it", [figure])


def _regret_words(picks: pd.DataFrame) -> str:
    means = picks.groupby("criterion", sort=False)["regret"].mean().sort_values()
    said = ", ".join(f"{name} {value:.1f}" for name, value in means.items() if pd.notna(value))
    return f"Mean regret in points on {picks['dataset'].iloc[0]}: {said}."


def _forest_words(cell: pd.DataFrame) -> str:
    parts = []
    for row in cell.sort_values("kendall_tau", ascending=False).to_dict("records"):
        if pd.isna(row["kendall_tau"]):
            parts.append(f"{row['criterion']} undefined")
        else:
            interval = with_interval(row["kendall_tau"], row["kendall_low"], row["kendall_high"])
            parts.append(f"{row['criterion']} {interval}")
    where = f"{_WITHIN[cell['population'].iloc[0]]}, {cell['dataset'].iloc[0]} test env {cell['test_env'].iloc[0]}"
    return f"Kendall tau {where}: {', '.join(parts)}."


def _scatter_words(findings: Findings, name: str, dataset: object, env: object) -> str:
    said = []
    for population, table in findings.ranks.items():
        here = table[(table["dataset"] == dataset) & (table["test_env"] == env) & (table["criterion"] == name)]
        for row in here.to_dict("records"):
            value = "undefined" if pd.isna(row["kendall_tau"]) else f"{row['kendall_tau']:.2f}"
            said.append(f"{value} {_WITHIN[population]}")
    return f"{name} against test accuracy, {dataset} test env {env}. Kendall tau: {', '.join(said)}."
