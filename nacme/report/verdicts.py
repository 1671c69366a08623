"""The sentences of the report: what its numbers say, how sure that is, and how to doubt it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nacme.inference import bootstrap
from nacme.inference.decision import Kind, decide, decide_choice
from nacme.records.load import unfilled_share
from nacme.report.findings import POPULATIONS, Findings, Population
from nacme.report.tables import is_undefined, signed, with_interval
from nacme.settings import FEW_BINS, FEW_FULL_BINS
from nacme.study.correlation import CELL
from nacme.study.quality import summarise_quality

TITLES = {
    "nac_me": "NAC-ME",
    "val_acc": "validation accuracy",
    "val_loss": "validation loss",
    "last": "the training step (last)",
}
NONE = "no difference can be told"


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
        claimed only where `nacme.inference.decision.decide` tells it, adjusted for the data sets of a verdict: of
        criteria that do not differ, each verdict says so in at least 95% of sweeps.
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
    within, across = (
        [_ranking(row, population, findings) for row in findings.overall[population].to_dict("records")]
        for population in POPULATIONS
    )
    return [*found, _merge("Within a run", within), _merge("Across the sweep", across), _choice(findings)]


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


def _ranking(row: dict[Any, Any], population: Population, findings: Findings) -> Verdict:
    """Word the difference in ranking on a data set, over the runs of all its test envs."""
    what = "the checkpoints of a run" if population == "run" else "all checkpoints of a sweep"
    judged, rival = (_title(name) for name in (findings.judged, findings.rival))
    dataset = row["dataset"]
    kind = decide(row["low"], row["high"], row["p_holm"])
    taus = f"Kendall tau {signed(row['value'], 2)} against {signed(row['baseline_value'], 2)}"
    if is_undefined(row["difference"]):
        sentence = (
            f"On {dataset}, nothing can be said of {judged} against {rival} in ranking {what}: the rank "
            f"correlation is undefined{_because(findings, dataset, population)}."
        )
        return Verdict("undefined", "undefined", sentence)
    if kind == "undefined":
        sentence = (
            f"On {dataset} there is one run, and one run says nothing about uncertainty: within it {taus} for "
            f"{judged} and {rival}. Train more runs before concluding anything."
        )
        return Verdict(kind, "undefined", sentence)
    runs = f"On {dataset}, across {row['n_runs']:,} runs, "
    written = with_interval(row["difference"], row["low"], row["high"])
    difference = f"{taus}, difference {written}"
    cells = findings.comparisons[population]
    cells = cells[(cells["dataset"] == dataset) & (cells["criterion"] == findings.judged)]
    if kind == "none":
        why = "an interval that contains 0, " if row["low"] <= 0 <= row["high"] else ""
        why = f"no interval ({row['reason']}), " if is_undefined(row["low"]) else why
        sentence = (
            f"{runs}{NONE} between {judged} and {rival} in ranking {what}: {difference}, {why}"
            f"{p_text(row['p_holm'])}."
        )
        if len(cells) > 1:  # told of none: counted, and nothing claimed
            higher, lower = (int((side * cells["difference"] > 0).sum()) for side in (1, -1))
            sentence += f" Its tau is higher in {higher} and lower in {lower} of {len(cells)} test envs."
        return Verdict(kind, NONE, sentence)
    sentence = f"{runs}{judged} ranks {what} {kind} than {rival}: {difference}, {p_text(row['p_holm'])}."
    if len(cells) > 1:
        adjusted = bootstrap.holm(cells["p_value"].to_numpy(float))
        sentence += f" Test env by test env: {_counts(list(map(decide, cells['low'], cells['high'], adjusted)))}."
    return Verdict(kind, kind, sentence)


def _choice(findings: Findings) -> Verdict:
    """Word what the choices across the sweep gain, over all test envs."""
    rival = str(findings.rival)
    cells = findings.quality["sweep"]
    pair = cells[cells["criterion"].isin([findings.judged, rival]) & cells["top1_acc"].notna()]
    both = pair.groupby(CELL)["criterion"].transform("size") == 2  # the two are averaged over the same test envs
    label = "Choosing from the sweep"
    first, second = _title(findings.judged), _title(rival)
    if not both.any():
        return Verdict("undefined", f"{label}: undefined", f"{first} and {second} choose nothing that compares.")
    table = summarise_quality(pair[both]).set_index("criterion")
    row = table.loc[findings.judged]
    gain, p = row[f"gain_over_{rival}"], row[f"sign_p_over_{rival}"]
    envs = f"{int(row['n_cells'])} test env" + ("" if row["n_cells"] == 1 else "s")
    said = (
        f"Over {envs}, what {first} chooses has {100 * row['top1_acc']:.1f}% test accuracy on average, "
        f"{row['regret']:.1f} points short of the best possible; what {second} chooses has "
        f"{100 * table.loc[rival, 'top1_acc']:.1f}%, {table.loc[rival, 'regret']:.1f} short. "
    )
    for name, title in ((findings.judged, first), (rival, second)):
        if none := int(table.loc[name, "n_no_choice"]):
            said += (
                f"{none} of the {int(table.loc[name, 'n_populations'])} choices by {title} rest on a tie of more "
                "than half of the candidates, which is no choice. "
            )
    won, lost = int(row[f"wins_over_{rival}"]), int(row[f"losses_to_{rival}"])
    verb = "gains" if gain >= 0 else "loses"
    said += (
        f"{first[0].upper()}{first[1:]} {verb} {abs(gain):.1f} points: better in {won}, worse in {lost} of {envs}"
    )
    if pd.isna(p):
        return Verdict("none", f"{label}: {NONE}", f"{said}, so {NONE}.")
    said += f" (sign test {p_text(p)})"
    kind = decide_choice(gain, won, lost, p)
    if kind == "none":
        return Verdict(kind, f"{label}: {NONE}", f"{said}; {NONE}.")
    return Verdict(kind, f"{label}: {kind}", f"{said}.")


def _counts(kinds: Sequence[Kind], than: str = "") -> str:
    """Count the test envs that go each way."""
    if set(kinds) == {"none"}:
        return f"{NONE} in any of {len(kinds)}"
    of = f"{len(kinds)} test env" + ("" if len(kinds) == 1 else "s")
    said = f"better{than} in {kinds.count('better')}, worse in {kinds.count('worse')} of {of}"
    if "none" in kinds:
        said += f"; in {kinds.count('none')} {NONE}"
    if "undefined" in kinds:
        said += f"; in {kinds.count('undefined')} it is undefined"
    return said


def _because(findings: Findings, dataset: str, population: Population) -> str:
    table = findings.ranks[population]
    pair = [findings.judged, findings.rival]
    here = table[(table["dataset"] == dataset) & table["criterion"].isin(pair) & table["kendall_tau"].isna()]
    reasons = sorted(set(here["reason"].dropna()))
    return f" ({', '.join(reasons)})" if reasons else ""


def p_text(p: float) -> str:
    """Write a p-value within a sentence."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


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
    few = measured["degenerate"].astype(bool)
    if {"occupied_bins", "full_bins"} <= {*measured}:
        # the other fault, of bins that are never full, is `unfilled`'s
        few &= ~((measured["full_bins"] < FEW_FULL_BINS) & (measured["occupied_bins"] >= FEW_BINS))
    bad = measured[few]
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
        f"has {runs.min():,}" + ("" if runs.min() == runs.max() else f" to {runs.max():,}") + " runs. With "
        f"fewer than {bootstrap.LEAST_RUNS} no interval is given, since none would hold the truth as often as it "
        "says; with fewer than 6 no difference within a run can be told, with fewer than 12 none across a sweep.",
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
