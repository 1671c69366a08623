"""What a sweep shows: its statistics gathered once, and the sentences that say what they mean."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from nacme.comparison import compare_criteria
from nacme.correlation import rank_correlation
from nacme.criteria import criterion_values
from nacme.errors import NacmeWarning
from nacme.quality import selection_quality, summarise_quality
from nacme.selection import select, single_env_rows
from nacme.tables import is_undefined, signed, with_interval

Population = Literal["run", "sweep"]
POPULATIONS: tuple[Population, ...] = ("run", "sweep")
TITLES = {
    "nac_me": "NAC-ME",
    "val_acc": "validation accuracy",
    "val_loss": "validation loss",
    "last": "the last checkpoint",
}
_WHY = re.compile("constant criterion|constant test accuracy|one checkpoint|no checkpoint")


@dataclass(frozen=True)
class Verdict:
    """One finding in plain words, and which way it goes."""

    kind: Literal["better", "worse", "none", "undefined"]
    label: str
    sentence: str


@dataclass(frozen=True)
class Findings:
    """The rows of a sweep's single-test-env runs, with the statistics of both populations.

    Parameters
    ----------
    rows : DataFrame
        As `nacme.load_sweep` returns it, single test env only, with a column per criterion.
    criteria : list of str
        In the order of the report; the first is the one that is judged.
    picks : dict
        What `nacme.select` returns, per population.
    quality, summary : dict
        What `nacme.quality.selection_quality` and `summarise_quality` return, per population, with `rival` as
        the baseline; the summary also has the standard error of regret over the choices, `regret_error`.
    ranks : dict
        What `nacme.rank_correlation` returns, per population, with a column `reason` where tau is undefined;
        algorithms are pooled where there are several.
    comparisons : dict
        What `nacme.comparison.compare_criteria` returns for every other criterion against `rival`, per
        population; empty without a rival.
    overall : DataFrame or None
        The judged criterion against `rival` within a run, one row per data set, its test envs taken together.
    notes : list of str
        What was left out, undefined or tied.
    n_boot, seed : int
        Of the bootstrap.
    """

    rows: pd.DataFrame
    criteria: list[str]
    picks: dict[Population, pd.DataFrame]
    quality: dict[Population, pd.DataFrame]
    summary: dict[Population, pd.DataFrame]
    ranks: dict[Population, pd.DataFrame]
    comparisons: dict[Population, pd.DataFrame]
    overall: pd.DataFrame | None
    notes: list[str]
    n_boot: int
    seed: int

    @property
    def judged(self) -> str:
        """The criterion that the verdict is about."""
        return self.criteria[0]

    @property
    def rival(self) -> str | None:
        """The criterion that it is compared with."""
        return rival_of(self.criteria)


def rival_of(criteria: Sequence[str]) -> str | None:
    """Name what the first criterion is compared with: ``val_acc``, or the second; None if there is none."""
    others = list(criteria[1:])
    return "val_acc" if "val_acc" in others else next(iter(others), None)


def gather(df: pd.DataFrame, criteria: Sequence[str], *, include_step0: bool, n_boot: int, seed: int) -> Findings:
    """Compute every statistic of the report; what the computation warns of becomes a note.

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it.
    criteria : sequence of str
        Names of criteria.
    include_step0 : bool
        Whether the untrained network counts in the correlations.
    n_boot, seed : int
        Of the bootstrap over runs.

    Returns
    -------
    Findings

    Raises
    ------
    CriterionError, SweepError
        As `nacme.select` and `nacme.rank_correlation` raise them.
    """
    df = df.reset_index(drop=True)
    names = list(criteria)
    cells = df.groupby(["dataset", "test_env"]).ngroup().astype(float)
    values = {name: criterion_values(df, name, cells) for name in names}
    rows = single_env_rows(df.assign(**values))
    options: dict[str, Any] = {
        "include_step0": include_step0,
        "n_boot": n_boot,
        "seed": seed,
        "pool_algorithms": rows["algorithm"].nunique() > 1,
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NacmeWarning)
        picks = {per: select(df, names, per) for per in POPULATIONS}
        rival = rival_of(names)
        quality = {
            per: selection_quality(df, names, per, baselines=[rival] if rival else []) for per in POPULATIONS
        }
        ranks = {population: rank_correlation(df, names, population, **options) for population in POPULATIONS}
        comparisons, overall = _compare(df, names, options)
    summary = {}
    for per in POPULATIONS:
        errors = picks[per].groupby("criterion")["regret"].sem()
        summary[per] = summarise_quality(quality[per])
        summary[per]["regret_error"] = summary[per]["criterion"].map(errors)
    notes = [f"left out: {exclusion}" for exclusion in df.attrs.get("exclusions", [])]
    if several := int((df["n_test_envs"] > 1).sum()):
        notes.append(f"{several:,} rows of runs with several test envs serve leave-one-out only")
    runs = rows.drop_duplicates("run")
    if unfinished := int((~runs["done"]).sum()):
        notes.append(f"{unfinished:,} of {len(runs):,} runs are not finished")
    if "degenerate" in rows and degenerate(rows) is None:
        bins = f"; {rows['occupied_bins'].mean():.1f} bins occupied on average" if "occupied_bins" in rows else ""
        notes.append(
            f"coverage was measured at {rows['degenerate'].count():,} checkpoints{bins}; degenerate at none"
        )
    notes += dict.fromkeys(str(warning.message) for warning in caught)
    for table in ranks.values():
        said = table.attrs.get("notes", [])
        table["reason"] = [
            _reason(said, row) if pd.isna(row["kendall_tau"]) else None for row in table.to_dict("records")
        ]
        notes += [note for note in said if note not in notes]
    return Findings(rows, names, picks, quality, summary, ranks, comparisons, overall, notes, n_boot, seed)


def _compare(
    df: pd.DataFrame, names: list[str], options: dict[str, Any]
) -> tuple[dict[Population, pd.DataFrame], pd.DataFrame | None]:
    """Compare every criterion with the rival in each test env, and the judged one over all test envs at once."""
    rival = rival_of(names)
    if rival is None:
        return {}, None
    others = [name for name in names if name != rival]
    tables = {population: compare_criteria(df, others, rival, population, **options) for population in POPULATIONS}
    # A run has one test env, so a mean over the runs of all test envs is that of one cell that holds them all. A
    # criterion whose values follow from which env is the test env does not survive the renaming.
    merged = df.assign(test_env=-1)
    runs = df.groupby("run").ngroup().astype(float)
    for name in (names[0], rival):
        if not criterion_values(df, name, runs).equals(criterion_values(merged, name, runs)):
            return tables, None
    options = {**options, "pool_algorithms": True}
    return tables, compare_criteria(merged, names[0], rival, "run", **options)


def _reason(notes: Sequence[str], row: Any) -> str | None:
    """Find in the notes why a correlation is undefined."""
    cell = f"{row['dataset']}, {row['algorithm']}, env {row['test_env']}"
    for note in notes:
        said, _, cells = note.rpartition(" [")
        if said.startswith(f"{row['criterion']}: undefined") and cell in cells.rstrip("]").split("; "):
            found = _WHY.search(said)
            return found.group() if found else None
    return None


def verdicts(findings: Findings) -> list[Verdict]:
    """Say for each data set how the judged criterion does against its rival, and how sure that is.

    Parameters
    ----------
    findings : Findings

    Returns
    -------
    list of Verdict
        Per data set, of ranking within a run and across the sweep; then one of the choices across the sweep. A
        difference is claimed only where its interval leaves out 0, or the sign test gives p below 0.05.
    """
    found = []
    if "nac_me" not in findings.criteria:
        sentence = (
            "The records hold no nac_me, or it was not asked for, so this report says nothing about coverage. "
            "'nacme score' measures it at saved checkpoints."
        )
        found.append(Verdict("undefined", "NAC-ME: not reported", sentence))
    if findings.rival is None:
        sentence = f"Only {findings.judged} is reported: there is nothing to compare it with."
        return [*found, Verdict("undefined", "No comparison", sentence)]
    for dataset in sorted(findings.rows["dataset"].unique()):
        within, across = (_of(findings.comparisons[p], dataset, findings.judged) for p in POPULATIONS)
        overall = within if findings.overall is None else _of(findings.overall, dataset, findings.judged)
        if len(overall) == 1:
            found.append(_within(str(dataset), overall.iloc[0], within, findings))
        else:
            found.append(_tally("Within a run", str(dataset), "the checkpoints of a run", within, findings))
        found.append(_tally("Across the sweep", str(dataset), "all checkpoints of a sweep", across, findings))
    found.append(_choice(findings))
    return found


def direction(low: float, high: float) -> Literal["better", "worse", "none", "undefined"]:
    """Say which way a difference goes: a way is claimed only where the interval leaves out 0."""
    if is_undefined(low) or is_undefined(high):
        return "undefined"
    return "better" if low > 0 else "worse" if high < 0 else "none"


def _of(table: pd.DataFrame, dataset: object, criterion: str) -> pd.DataFrame:
    chosen: pd.DataFrame = table[(table["dataset"] == dataset) & (table["criterion"] == criterion)]
    return chosen


def _within(dataset: str, row: Any, cells: pd.DataFrame, findings: Findings) -> Verdict:
    """Word the difference within a run, over the runs of a data set."""
    judged, rival = (_title(name) for name in (findings.judged, findings.rival))
    kind = direction(row["low"], row["high"])
    taus = f"Kendall tau {signed(row['value'], 2)} against {signed(row['baseline_value'], 2)}"
    runs = f"On {dataset}, across {row['n_runs']:,} runs, "
    if kind == "undefined":
        if row["n_runs"] == 1:
            sentence = (
                f"On {dataset} there is one run, and one run says nothing about uncertainty: within it {taus} for "
                f"{judged} and {rival}. Train more runs before concluding anything."
            )
        else:
            sentence = (
                f"On {dataset}, nothing can be said of {judged} against {rival} within a run: the rank "
                f"correlation is undefined{_because(findings, dataset)}."
            )
        return Verdict(kind, "Within a run: undefined", sentence)
    difference = f"difference {with_interval(row['difference'], row['low'], row['high'])}"
    if kind == "none":
        sentence = (
            f"{runs}no difference can be told between {judged} and {rival} in ranking the checkpoints of a run: "
            f"{taus}, {difference}, an interval that contains 0."
        )
    else:
        sentence = f"{runs}{judged} ranks the checkpoints of a run {kind} than {rival}: {taus}, {difference}."
    if len(cells) > 1:
        sentence += f" Test env by test env: {_counts(cells)}."
    return Verdict(kind, "Within a run: " + {"none": "no difference can be told"}.get(kind, kind), sentence)


def _tally(label: str, dataset: str, what: str, cells: pd.DataFrame, findings: Findings) -> Verdict:
    """Word the differences of a data set's cells, which have no common interval."""
    judged, rival = (_title(name) for name in (findings.judged, findings.rival))
    kinds = [direction(low, high) for low, high in zip(cells["low"], cells["high"])]
    kind: Literal["better", "worse", "none", "undefined"] = "none"
    if len(set(kinds)) == 1:
        kind = kinds[0]
    if kind == "undefined":
        sentence = f"On {dataset}, nothing can be said of {judged} against {rival} in ranking {what}: " + (
            "one run says nothing about uncertainty."
            if (cells["n_runs"] == 1).all()
            else f"no test env has a defined difference with an interval{_because(findings, dataset)}."
        )
        return Verdict(kind, f"{label}: undefined", sentence)
    differences = cells["difference"].dropna()
    low, high = signed(differences.min(), 2), signed(differences.max(), 2)
    spread = f"difference in Kendall tau {low}" if low == high else f"differences in Kendall tau {low} to {high}"
    sentence = f"On {dataset}, {judged} ranks {what} {_counts(cells, f' than {rival}')} ({spread})."
    mixed = "mixed" if len(set(kinds)) > 1 else "no difference can be told"
    return Verdict(kind, f"{label}: " + (mixed if kind == "none" else kind), sentence)


def _choice(findings: Findings) -> Verdict:
    """Word what the choices across the sweep gain, over all test envs."""
    table = findings.summary["sweep"].set_index("criterion")
    rival = str(findings.rival)
    row = table.loc[findings.judged]
    gain, p = row[f"gain_over_{rival}"], row[f"sign_p_over_{rival}"]
    first, second = _title(findings.judged), _title(rival)
    label = "Choosing from the sweep"
    if pd.isna(gain):
        return Verdict("undefined", f"{label}: undefined", f"{first} and {second} choose nothing that compares.")
    cells = f"{int(row['n_cells'])} test env" + ("" if row["n_cells"] == 1 else "s")
    said = (
        f"Over {cells}, what {first} chooses has {100 * row['top1_acc']:.1f}% test accuracy on average, "
        f"{row['regret']:.1f} points short of the best possible; what {second} chooses has "
        f"{100 * table.loc[rival, 'top1_acc']:.1f}%, {table.loc[rival, 'regret']:.1f} short. "
    )
    won, lost = int(row[f"wins_over_{rival}"]), int(row[f"losses_to_{rival}"])
    said += f"{first} gains {signed(gain, 1)} points: better in {won}, worse in {lost} of {cells}"
    if pd.isna(p):
        return Verdict("none", f"{label}: no difference can be told", f"{said}, so no difference can be told.")
    said += f" (sign test p = {p:.2g})"
    if p >= 0.05:
        return Verdict("none", f"{label}: no difference can be told", f"{said}; no difference can be told.")
    kind: Literal["better", "worse"] = "better" if won > lost else "worse"
    return Verdict(kind, f"{label}: {kind}", f"{said}.")


def _counts(cells: pd.DataFrame, than: str = "") -> str:
    """Count the cells that go each way."""
    kinds = [direction(low, high) for low, high in zip(cells["low"], cells["high"])]
    of = f"{len(kinds)} test env" + ("" if len(kinds) == 1 else "s")
    said = f"better{than} in {kinds.count('better')}, worse in {kinds.count('worse')} of {of}"
    if "none" in kinds:
        said += f"; in {kinds.count('none')} no difference can be told"
    if "undefined" in kinds:
        said += f"; in {kinds.count('undefined')} it is undefined"
    return said


def _because(findings: Findings, dataset: str) -> str:
    table = findings.ranks["run"]
    pair = [findings.judged, findings.rival]
    here = table[(table["dataset"] == dataset) & table["criterion"].isin(pair)]
    reasons = sorted(set(here["reason"].dropna()))
    return f" ({', '.join(reasons)})" if reasons else ""


def _title(name: str | None) -> str:
    return TITLES.get(str(name), str(name))


def degenerate(rows: pd.DataFrame) -> str | None:
    """Say plainly where coverage is degenerate; None where it is not, or was not measured.

    Parameters
    ----------
    rows : DataFrame
        With the columns `degenerate` and `occupied_bins`, if coverage was measured.

    Returns
    -------
    str or None
    """
    if "degenerate" not in rows:
        return None
    measured = rows.dropna(subset=["degenerate"])
    bad = measured[measured["degenerate"].astype(bool)]
    if bad.empty:
        return None
    bins = "" if "occupied_bins" not in bad else f" ({bad['occupied_bins'].mean():.1f} bins occupied on average)"
    where = "" if rows["dataset"].nunique() == 1 else f" (in {', '.join(sorted(bad['dataset'].unique()))})"
    return (
        f"At {len(bad):,} of the {len(measured):,} checkpoints where it was measured{where}, nearly all states of "
        f"a neuron fall in one bin{bins}. There NAC-ME says little more than how many samples were counted; with "
        "correctly classified samples only, that is accuracy in disguise. Judge nothing about coverage from these "
        "checkpoints; measure them again with another alpha."
    )


def cautions(findings: Findings) -> list[str]:
    """Say how the report is to be read critically, with the sweep's own numbers.

    Parameters
    ----------
    findings : Findings

    Returns
    -------
    list of str
    """
    rows, names = findings.rows, findings.criteria
    checkpoints = rows.groupby("run").size()
    runs = rows.groupby(["dataset", "algorithm", "test_env"])["run"].nunique()
    panels = len(runs) * len(names)
    return [
        f"Few checkpoints: a run here has {checkpoints.median():g} (median). With so few, tau within a run takes "
        "few values and swings widely; read the averages with their intervals, never a single run.",
        "Checkpoints of one run are not independent: neighbours share nearly all of their training. Intervals "
        f"come from resampling whole runs ({findings.n_boot:,} resamples, seed {findings.seed}); here a test env "
        f"has {runs.min():,}" + ("" if runs.min() == runs.max() else f" to {runs.max():,}") + " runs, and "
        "with fewer than about ten, intervals are themselves rough and tend to be too narrow.",
        "Training time is a confounder: coverage and accuracy both drift with the step, so that a criterion may "
        "score well by telling late from early. Compare with last, which knows the step and nothing else, and "
        "read the partial correlation given the step.",
        "A correlation is not a choice: a criterion may order most checkpoints well and still put a bad one "
        "first. Regret tells what the choice costs.",
        f"Many comparisons: of the {panels:,} correlations per population, about one interval in twenty misses "
        "its true value by chance. Look for what holds in every test env.",
        "Runs are all that is resampled. The choice of data sets, of test envs and of the criteria's settings is "
        "not part of any interval here.",
    ]
