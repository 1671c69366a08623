"""The sentences of the report: what its numbers say, how sure that is, and how to doubt it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from nacme.records.load import unfilled_share
from nacme.report.findings import POPULATIONS, Findings
from nacme.report.tables import is_undefined, signed, with_interval

Kind = Literal["better", "worse", "none", "undefined"]
TITLES = {
    "nac_me": "NAC-ME",
    "val_acc": "validation accuracy",
    "val_loss": "validation loss",
    "last": "the training step (last)",
}
_NONE = "no difference can be told"


@dataclass(frozen=True)
class Verdict:
    """One finding in plain words, and which way it goes; with several data sets, a line for each."""

    kind: Kind
    label: str
    sentence: str
    lines: tuple[str, ...] = ()


def verdicts(findings: Findings) -> list[Verdict]:
    """Say how the judged criterion does against its rival, and how sure that is.

    Parameters
    ----------
    findings : Findings

    Returns
    -------
    list of Verdict
        Of ranking within a run, of ranking across the sweep, of the choices across the sweep. A difference is
        claimed only where its interval leaves out 0, or the sign test gives p below 0.05.
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
    within, across = [], []
    for dataset in sorted(map(str, findings.rows["dataset"].unique())):
        in_runs, in_sweep = (_of(findings.comparisons[p], dataset, findings.judged) for p in POPULATIONS)
        overall = in_runs if findings.overall is None else _of(findings.overall, dataset, findings.judged)
        within.append(
            _within(dataset, overall.iloc[0], in_runs, findings)
            if len(overall) == 1
            else _tally(dataset, "the checkpoints of a run", in_runs, findings)
        )
        across.append(_tally(dataset, "all checkpoints of a sweep", in_sweep, findings))
    return [*found, _merge("Within a run", within), _merge("Across the sweep", across), _choice(findings)]


def direction(low: float, high: float) -> Kind:
    """Say which way a difference goes: a way is claimed only where the interval leaves out 0."""
    if is_undefined(low) or is_undefined(high):
        return "undefined"
    return "better" if low > 0 else "worse" if high < 0 else "none"


def _merge(label: str, found: Sequence[Verdict]) -> Verdict:
    """Put the verdicts of several data sets under one label."""
    if len(found) == 1:
        (only,) = found
        return Verdict(only.kind, f"{label}: {only.label}", only.sentence)
    kinds = [verdict.kind for verdict in found]
    way = kinds[0] if len(set(kinds)) == 1 else "none"
    sentence = f"Better on {kinds.count('better')}, worse on {kinds.count('worse')} of {len(found)} data sets."
    said = found[0].label if len({verdict.label for verdict in found}) == 1 else "mixed"
    return Verdict(way, f"{label}: {said}", sentence, tuple(verdict.sentence for verdict in found))


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
        return Verdict(kind, "undefined", sentence)
    difference = f"difference {with_interval(row['difference'], row['low'], row['high'])}"
    if kind == "none":
        sentence = (
            f"{runs}{_NONE} between {judged} and {rival} in ranking the checkpoints of a run: "
            f"{taus}, {difference}, an interval that contains 0."
        )
    else:
        sentence = f"{runs}{judged} ranks the checkpoints of a run {kind} than {rival}: {taus}, {difference}."
    if len(cells) > 1:
        kinds = [direction(low, high) for low, high in zip(cells["low"], cells["high"])]
        sentence += f" Test env by test env: {_counts(kinds)}."
    return Verdict(kind, _NONE if kind == "none" else kind, sentence)


def _tally(dataset: str, what: str, cells: pd.DataFrame, findings: Findings) -> Verdict:
    """Word the differences of a data set's cells, which have no common interval."""
    judged, rival = (_title(name) for name in (findings.judged, findings.rival))
    kinds = [direction(low, high) for low, high in zip(cells["low"], cells["high"])]
    told = set(kinds) - {"undefined"}
    kind: Kind = "undefined" if not told else "none" if len(told) > 1 else next(iter(told))
    if kind == "undefined":
        sentence = f"On {dataset}, nothing can be said of {judged} against {rival} in ranking {what}: " + (
            "one run says nothing about uncertainty."
            if (cells["n_runs"] == 1).all()
            else f"no test env has a defined difference with an interval{_because(findings, dataset)}."
        )
        return Verdict(kind, "undefined", sentence)
    differences = cells["difference"].dropna()
    low, high = signed(differences.min(), 2), signed(differences.max(), 2)
    spread = f"difference in Kendall tau {low}" if low == high else f"differences in Kendall tau {low} to {high}"
    if set(kinds) == {"none"}:
        where = "in its test env" if len(kinds) == 1 else f"in any of its {len(kinds)} test envs"
        sentence = f"On {dataset}, {_NONE} between {judged} and {rival} in ranking {what}, {where} ({spread})."
        return Verdict(kind, _NONE, sentence)
    sentence = f"On {dataset}, {judged} ranks {what} {_counts(kinds, f' than {rival}')} ({spread})."
    return Verdict(kind, "mixed" if len(told) > 1 else _NONE if kind == "none" else kind, sentence)


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
    verb = "gains" if gain >= 0 else "loses"
    said += (
        f"{first[0].upper()}{first[1:]} {verb} {abs(gain):.1f} points: better in {won}, worse in {lost} of {cells}"
    )
    if pd.isna(p):
        return Verdict("none", f"{label}: {_NONE}", f"{said}, so {_NONE}.")
    said += " (sign test p " + (f"= {p:.3f})" if p >= 0.001 else "< 0.001)")
    if p >= 0.05:
        return Verdict("none", f"{label}: {_NONE}", f"{said}; {_NONE}.")
    kind: Literal["better", "worse"] = "better" if won > lost else "worse"
    return Verdict(kind, f"{label}: {kind}", f"{said}.")


def _counts(kinds: Sequence[Kind], than: str = "") -> str:
    """Count the test envs that go each way."""
    if set(kinds) == {"none"}:
        return f"{_NONE} in any of {len(kinds)}"
    of = f"{len(kinds)} test env" + ("" if len(kinds) == 1 else "s")
    said = f"better{than} in {kinds.count('better')}, worse in {kinds.count('worse')} of {of}"
    if "none" in kinds:
        said += f"; in {kinds.count('none')} {_NONE}"
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
        With the column `step`, and with `degenerate` and `occupied_bins` if coverage was measured.

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
    first, last = bad["step"].min(), bad["step"].max()
    steps = "" if len(bad) == len(measured) else f", steps {first:,} to {last:,},"
    return (
        f"At {len(bad):,} of the {len(measured):,} checkpoints where it was measured{where}{steps} nearly all "
        f"states of a neuron fall in one bin{bins}. There NAC-ME says little more than how many samples were "
        "counted; with correctly classified samples only, that is accuracy in disguise. Judge nothing about "
        "coverage from these checkpoints; measure them again with another alpha."
    )


def unfilled(rows: pd.DataFrame) -> str | None:
    """Say plainly where coverage only counts samples because no bin is ever full; None where that is not so.

    Parameters
    ----------
    rows : DataFrame
        With the column `full_bins` if coverage was measured.

    Returns
    -------
    str or None
    """
    if (share := unfilled_share(rows)) <= 0.5:
        return None
    return (
        f"At {share:.0%} of the checkpoints where it was measured hardly any bin of a neuron holds as many states "
        "as O asks for. There NAC-ME is the number of samples counted on another scale; with correctly classified "
        "samples only, that is accuracy. Measure again with a smaller O, such as 0.08 of the samples."
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
    rows = findings.rows
    checkpoints = rows.groupby("run").size()
    runs = rows.groupby(["dataset", "test_env"])["run"].nunique()  # algorithms are pooled
    panels = len(findings.ranks["run"])
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
