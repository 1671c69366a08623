"""The studies' tables as Markdown: what ``analysis/studies/results.md`` holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.studies.figures import fill_text
from analysis.studies.tables import RIVALS
from nacme.inference.bootstrap import LEAST_RUNS
from nacme.inference.decision import decide
from nacme.study.sensitivity import SEEING

#: The criteria that stand beside each other in each test env.
SHOWN = ["val_acc", "nac_me", "nac_me_seeing_target", "last"]
MARKS = {"better": " ▲", "worse": " ▼", "none": "", "undefined": ""}


def results(found: Sequence[Mapping[str, pd.DataFrame]], of_all: Mapping[str, pd.DataFrame]) -> str:
    """Write all tables.

    Parameters
    ----------
    found : sequence of mapping of str to DataFrame
        Of each study, the tables of `analysis.studies.tables` and `analysis.studies.controls` by name.
    of_all : mapping of str to DataFrame
        ``choices``, ``across`` and ``confirmation`` of several studies together, where there are such.

    Returns
    -------
    str
    """
    parts = ["# Results\n\nMade by `make study` from the stored records; README.md says what they mean.\n"]
    parts.append(f"## What the records hold\n\n{_facts(pd.concat([tables['facts'] for tables in found]))}")
    if "confirmation" in of_all:
        parts.append(f"## The hypothesis of PROTOCOL.md\n\n{_confirmation(of_all['confirmation'])}")
    parts.append(f"## Tau within runs, and what is left of it at a fixed step\n\n{_summary(found)}")
    parts.append(f"## Coverage and counting\n\n{_controls(pd.concat([tables['controls'] for tables in found]))}")
    for tables in found:
        dataset = tables["overall"]["dataset"].iloc[0]
        parts.append(f"## {dataset}\n\n### Each test env, within runs\n\n{_by_env(tables)}")
        parts.append(f"### Each test env: tau less that of `val_acc`\n\n{_env_level(tables['env_level'])}")
        parts.append(f"### Every criterion, within runs, all test envs\n\n{_overall(tables['overall'])}")
        parts.append(f"### Settings of NAC-ME: mean tau\n\n{_settings(tables['settings'])}")
        if "honest" in tables:
            parts.append(f"### Settings and criteria chosen without the target\n\n{_honest(tables['honest'])}")
        parts.append(
            "### Settings and criteria chosen on the other test envs, by runs trained on this one\n\n"
            f"{_nested(tables)}"
        )
        if "authors_way" in tables:
            parts.append(f"### The authors' table\n\n{_authors(tables['authors_way'])}")
        if "splits" in tables:
            parts.append(f"### Validation splits (out) and training splits (in)\n\n{_splits(tables['splits'])}")
    if "choices" in of_all:
        parts.append(
            f"## All data sets\n\n### What is chosen, over all test envs\n\n{_choices(of_all['choices'])}"
        )
        parts.append(f"### Criteria and settings chosen on the other data sets\n\n{_across(of_all['across'])}")
    return "\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Lay out a table whose first columns are texts and whose others are numbers."""
    ruler = ["---"] * texts + ["---:"] * (len(head) - texts)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ruler, *rows))


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """Write a number with a true minus sign; a dash where it is undefined."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−") if np.isfinite(value) else "–"


def interval(value: float, low: float, high: float, sign: bool = False) -> str:
    """Write a number and its interval."""
    if not np.isfinite(value):
        return "–"
    ends = f" [{number(low)}, {number(high)}]" if np.isfinite(low) else ""  # none is given for few runs
    return number(value, sign=sign) + ends


def p(value: float) -> str:
    return "–" if not np.isfinite(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def code(name: object) -> str:
    return f"`{name}`" if isinstance(name, str) else "–"


def _facts(facts: pd.DataFrame) -> str:
    rows = []
    for _, row in facts.iterrows():
        runs = f"{row['runs']}" + (f" of {row['planned']}" if row["planned"] > row["runs"] else "")
        counts = [row["layers"], runs, f"{row['checkpoints']}", f"{row['degenerate']:.0%}"]
        rows.append([row["dataset"], *counts, f"{row['constant_nac_me']}", f"{row['constant_test_acc']}"])
    head = ["data set", "layer of `nac_me`", "runs", "checkpoints", "degenerate", "runs with constant `nac_me`"]
    return table([*head, "runs with constant test accuracy"], rows, texts=2) + (
        "\nConstant: at all checkpoints but step 0. Runs of how many, where a study is not finished.\n"
    )


def _controls(controls: pd.DataFrame) -> str:
    rows = []
    for _, row in controls.iterrows():
        ends = [interval(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in ("partial", "beyond")]
        less = interval(row["difference"], row["low"], row["high"], sign=True)
        cells = [code(row["control"]), f"{row['n_runs']:.0f}", number(row["value"]), number(row["control_value"])]
        rows.append([row["dataset"], code(row["criterion"]), *cells, less, p(row["p_holm"]), *ends])
    head = ["data set", "coverage", "sham", "runs", "tau", "tau of the sham", "difference", "p"]
    return table([*head, "rho, step fixed", "rho, step and `val_acc` fixed"], rows, texts=3) + (
        "\nA finding about coverage must beat its sham: `sham_count` is the number of samples counted, "
        "`sham_permuted` has another checkpoint's states with this one's count; both of `nac_me`'s own settings. "
        "What coverage knows beyond counting correct samples is in the last column. A dash: not recorded, or "
        "undefined.\n"
    )


def _env_level(env_level: pd.DataFrame) -> str:
    envs = list(env_level.columns[2 : list(env_level.columns).index("n_envs")])
    rows = []
    for _, row in env_level.iterrows():
        cells = [number(row[env], sign=True) for env in envs]
        ahead = f"{row['n_ahead']} of {row['n_envs']}"
        rows.append([code(row["criterion"]), *cells, interval(row["mean"], row["low"], row["high"], True), ahead])
    return table(["criterion", *map(str, envs), "mean over test envs", "ahead in"], rows) + (
        f"\nThe interval is Student's over test envs, and none is given over fewer than {LEAST_RUNS}.\n"
    )


def _honest(honest: pd.DataFrame) -> str:
    by = honest.set_index(["among", "test_env", "choice"])
    rows = []
    for env in honest["test_env"].unique():
        cells = [*_chosen(by.loc[("settings", env, "nested")]), *_chosen(by.loc[("all", env, "nested")])]
        others = [by.loc[("settings", env, name), "kendall_tau"] for name in ("peeking", *RIVALS)]
        chose = by.loc[("settings", env, "nested"), "n_chose"]
        rows.append([str(env), f"{chose:.0f}", *cells, *map(number, others)])
    head = ["test env", "runs that chose", "setting", "tau", "regret", "criterion or setting", "tau", "regret"]
    alone = (honest["judged_on"] == "single").all()
    judged = "in the runs that hold it out alone" if alone else "in the runs that chose"
    return table([*head, "best setting, peeking", *map(code, RIVALS)], rows) + (
        "\nChosen by runs that hold out this test env and others, by accuracy on the others; judged on this one, "
        f"{judged}.\n"
    )


def _authors(authors: pd.DataFrame) -> str:
    envs = list(authors["test_env"].unique())
    by = authors.set_index(["criterion", "test_env"])
    rows = []
    for name in authors["criterion"].unique():
        of = [by.loc[(name, env)] for env in envs]
        accs = [number(100 * row["test_acc"], 1) for row in of]
        ranks = [number(row["authors_rank_correlation"]) for row in of]
        rows.append([code(name), *accs, *ranks, number(of[-1]["kendall_tau"]), number(of[-1]["spearman_rho"])])
    head = [*(f"selects, {env}" for env in envs), *(f"rank correlation, {env}" for env in envs)]
    return table(["criterion", *head, "tau-b", "rho"], rows) + (
        "\nA column names the test envs whose mean accuracy counts. Step 0 counts, the first of the highest is "
        "selected (%), the rank correlation is 1 − 6 Σd² / n(n² − 1) with ties broken by position, which gives a "
        "constant what it gives the step counter; tau-b and rho are ours on the same checkpoints, ties counted. "
        "The authors' example (PACS, pretrained ResNet-18, 4,801 steps): coverage selects 58.1, validation 56.0, "
        "last 57.8, oracle 59.3; rank correlation 0.51 against 0.52.\n"
    )


def _confirmation(confirmation: pd.DataFrame) -> str:
    rows = []
    for _, row in confirmation.iterrows():
        verdict = row["verdict"] if isinstance(row["verdict"], str) else ""
        counts = [
            f"{row['n_runs']:.0f}",
            f"{row['n_undefined']:.0f}",
            number(row["value"]),
            number(row["val_acc"]),
        ]
        apart = interval(row["difference"], row["low"], row["high"], sign=True)
        rows.append([row["dataset"], row["step0"], row["undefined"], verdict, *counts, apart, p(row["p_value"])])
    head = ["data set", "step 0", "undefined", "verdict", "runs", "runs without a tau"]
    return table([*head, "tau of coverage", "tau of `val_acc`", "difference", "p"], rows, texts=4)


def _summary(found: Sequence[Mapping[str, pd.DataFrame]]) -> str:
    columns = [tables["overall"].set_index("criterion") for tables in found]
    names = pd.concat(columns).groupby("criterion")["kendall_tau"].mean().sort_values(ascending=False).index
    rows = []
    for name in names:
        taus, partials = [], []
        for row in (column.loc[name] for column in columns):
            mark = MARKS[decide(*(row[f"less_val_acc_{end}"] for end in ("low", "high", "p_holm")))]
            taus.append(interval(row["kendall_tau"], row["kendall_low"], row["kendall_high"]) + mark)
            partials.append(interval(row["partial_spearman_step"], row["partial_low"], row["partial_high"]))
        rows.append([code(name), *taus, *partials])
    datasets = [tables["overall"]["dataset"].iloc[0] for tables in found]
    head = [
        "criterion",
        *(f"tau, {name}" for name in datasets),
        *(f"rho at fixed step, {name}" for name in datasets),
    ]
    return (
        table(head, rows)
        + "\n▲ better, ▼ worse than `val_acc` on the runs where both are defined: the interval of the difference "
        "leaves out 0 and p of the permutation of runs is 0.05 at most. p of `nac_me` is of the one comparison "
        "declared beforehand, the others' are adjusted among themselves by Holm.\n"
    )


def _by_env(tables: Mapping[str, pd.DataFrame]) -> str:
    taus = tables["by_env"].query("population == 'run'").set_index(["test_env", "criterion"])
    regrets = tables["regret_per_run"].set_index(["test_env", "criterion"])
    rows = []
    for env in taus.index.unique("test_env"):
        of_env = [taus.loc[(env, name)] for name in SHOWN]
        cells = [interval(row["kendall_tau"], row["kendall_low"], row["kendall_high"]) for row in of_env]
        kinds = ("regret", "regret_over_ties", "n_tied")
        lost = [" / ".join(number(regrets.loc[(env, name), kind], 1) for name in SHOWN) for kind in kinds]
        rows.append([str(env), str(of_env[0]["n_runs"]), *cells, *lost])
    taus_of = [f"tau of `{name}`" for name in SHOWN]
    return table(["test env", "runs with a tau", *taus_of, "regret of the four", "drawn from ties", "tied"], rows)


def _overall(overall: pd.DataFrame) -> str:
    head = ["criterion", "tau"]
    for rival in RIVALS:
        head += [f"less `{rival}`", "p"]
    head += [
        "rho, step fixed*",
        "rho, step and `val_acc` fixed*",
        "tau with `val_acc`",
        "regret per run",
        "regret per sweep",
    ]
    rows = []
    for _, row in overall.sort_values("kendall_tau", ascending=False, kind="stable").iterrows():
        cells = [code(row["criterion"]), interval(row["kendall_tau"], row["kendall_low"], row["kendall_high"])]
        for rival in RIVALS:
            ends = [row[f"less_{rival}_{end}"] for end in ("difference", "low", "high")]
            runs = row[f"less_{rival}_n_runs"]
            fewer = f" ({runs:.0f} runs)" if runs < row["n_runs"] else ""
            cells += [interval(*ends, sign=True) + fewer, p(row[f"less_{rival}_p_holm"])]
        for name in ("partial", "beyond"):
            cells.append(interval(row[name], row[f"{name}_low"], row[f"{name}_high"]))
        cells += [number(row["tau_with_val_acc"]), number(row["regret_per_run"], 1)]
        rows.append([*cells, number(row["regret_per_sweep"], 1)])
    return table(head, rows) + (
        "\n\\* Spearman's rank correlation with the step, or step and validation accuracy, held fixed. "
        "Differences are on the runs where both are defined, counted where those are fewer than the criterion's "
        "own. p: permutation of runs, adjusted by Holm, but for the declared comparison, `nac_me` less `val_acc`. "
        "Regret in points.\n"
    )


def _settings(settings: pd.DataFrame) -> str:
    layers = settings["layer"].map(lambda name: "that of `nac_me`" if name == "mean" else name.replace("_", "."))
    settings = settings.assign(layer=layers)
    # numbers in their order, then "auto"
    alphas = sorted(settings["alpha"].unique(), key=lambda alpha: (isinstance(alpha, str), alpha))
    rows = []
    for (layer, split, fill, bins), group in settings.groupby(["layer", "split", "fill", "bins"]):
        means = group.groupby("alpha")["kendall_tau"].mean()
        cells = [number(means.get(alpha, float("nan"))) for alpha in alphas]
        rows.append([layer, "" if split == "main" else split, fill_text(fill), str(bins), *cells])
    heads = [f"alpha {alpha if isinstance(alpha, str) else f'{alpha:g}'}" for alpha in alphas]
    return table(["layer", "split", "O", "M", *heads], rows, texts=4) + "\nNo split: that of `nac_me`.\n"


def _nested(tables: Mapping[str, pd.DataFrame]) -> str:
    settings, criteria = (
        tables[name].set_index(["test_env", "choice"]) for name in ("nested_settings", "nested_criteria")
    )
    rows = []
    for env in settings.index.unique("test_env"):
        cells = [*_chosen(settings.loc[(env, SEEING)]), *_chosen(criteria.loc[(env, SEEING)])]
        others = [settings.loc[(env, name), "kendall_tau"] for name in ("peeking", *RIVALS)]
        rows.append([str(env), *cells, *map(number, others)])
    head = ["test env", "setting", "tau", "regret", "criterion or setting", "tau", "regret"]
    return table([*head, "best setting, peeking", *map(code, RIVALS)], rows)


def _chosen(row: pd.Series[float]) -> list[str]:
    return [code(row["key"]), number(row["kendall_tau"]), number(row["regret"], 1)]


def _splits(splits: pd.DataFrame) -> str:
    rows = [
        [
            code(row["key"]),
            number(row["tau_out"]),
            number(row["tau_in"]),
            interval(row["in_less_out"], row["low"], row["high"], sign=True),
            number(row["tau_between"]),
        ]
        for _, row in splits.iterrows()
    ]
    runs = splits["n_runs"].max()
    return table([f"setting ({runs} runs)", "tau, out", "tau, in", "in less out", "tau between the two"], rows)


def _choices(choices: pd.DataFrame) -> str:
    rows = []
    for _, row in choices.iterrows():
        cells = [code(row["criterion"]), row["per"], number(100 * row["top1_acc"], 1), number(row["regret"], 1)]
        cells += [number(row["regret_over_ties"], 1), f"{row['n_no_choice']:.0f}/{row['n_populations']:.0f}"]
        for rival in RIVALS:
            counts = (row[f"wins_over_{rival}"], row[f"ties_with_{rival}"], row[f"losses_to_{rival}"])
            cells += ["/".join(f"{count:.0f}" for count in counts), p(row[f"sign_p_over_{rival}"])]
        rows.append(cells)
    head = ["criterion", "chosen per", "test accuracy (%)", "regret (points)", "drawn from ties", "no choice"]
    for rival in RIVALS:
        head += [f"better/equal/worse than `{rival}`", "p"]
    return table(head, rows, texts=2) + (
        "\np: two-sided sign test over test envs, not adjusted. Drawn from ties: the regret to be expected if one "
        "of the checkpoints that tie for first place is drawn. No choice: choices that rest on a tie of more than "
        "half of the candidates.\n"
    )


def _across(across: pd.DataFrame) -> str:
    rows = []
    for dataset, group in across.groupby("dataset", sort=False):
        of = group.set_index("choice")
        taus = [number(of.loc[name, "kendall_tau"]) for name in RIVALS]
        rows.append([str(dataset), *_chosen(of.loc[SEEING]), *taus])
    return table(["data set", "chosen on the others", "tau", "regret", *map(code, RIVALS)], rows, texts=2)
