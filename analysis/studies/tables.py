"""What the studies ask of their records, one table a question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

import nacme
from analysis.studies import controls
from nacme.criteria import expressions
from nacme.criteria.registry import criterion, criterion_values, oriented_values
from nacme.study.comparison import compare_criteria
from nacme.study.quality import selection_quality, summarise_quality
from nacme.study.sensitivity import SEEING, grid_settings, nested_choice, nested_seeing_target, sensitivity

#: What every study records, and combinations that could be had for nothing.
RECORDED = [
    "val_acc",
    "nac_me",
    "nac_me_auto",
    "nac_activation",
    "nac_gradient",
    "rank_mean(nac_me, val_acc)",
    "rank_mean(nac_me_auto, val_acc)",
    "rank_mean(val_loss, val_acc)",
    "val_acc_worst",
    "val_loss",
    "val_loss_variance",
    "val_acc_minus_discrepancy",
    "coral_distance",
    "mmd",
    "ece",
    "entropy",
    "confidence",
    "feature_norm",
    "effective_rank",
    "weight_norm",
    "last",
]
NESTED = ["nac_me_seeing_target", "any_seeing_target"]
#: What newer studies record besides.
RECORDED_LATER = ["nac_me_all", "nac_me_robust"]
RIVALS = ("val_acc", "nac_me", "last")
PER = ("run", "sweep")


@criterion(higher_is_better=True, sees="ind", needs=["records"], cost="none", source="analysis/studies")
def nac_me_seeing_target(df: pd.DataFrame) -> pd.Series[float]:
    """NAC-ME at the setting of the grid that ranks best in the data set's other test envs."""
    return df["nac_me_seeing_target"]


@criterion(higher_is_better=True, sees="ind", needs=["records"], cost="none", source="analysis/studies")
def any_seeing_target(df: pd.DataFrame) -> pd.Series[float]:
    """The criterion or setting of NAC-ME that ranks best in the data set's other test envs."""
    return df["any_seeing_target"]


def recorded(df: pd.DataFrame) -> list[str]:
    """Name the criteria that records hold, without the controls."""
    names = [*RECORDED, *RECORDED_LATER]
    parts = {name: combined.parts if (combined := expressions.parse(name)) else (name,) for name in names}
    return [name for name in names if all(part == "last" or part in df for part in parts[name])]


def criteria(df: pd.DataFrame) -> list[str]:
    """Name the criteria that records hold, what was chosen among settings and criteria, and the controls."""
    return [*recorded(df), *NESTED, *controls.shams(df)]


def with_nested(df: pd.DataFrame, settings: pd.DataFrame, criteria: pd.DataFrame) -> pd.DataFrame:
    """Add what `nested_settings` and `nested_criteria` chose as columns, turned so that higher is better."""
    for name, table in (("nac_me_seeing_target", settings), ("any_seeing_target", criteria)):
        values = pd.Series(float("nan"), index=df.index)
        keys = table[table["choice"] == SEEING].set_index("test_env")["key"].dropna()
        for env, key in keys.items():
            values[df["test_env"] == env] = oriented_values(df, key)
        df = df.assign(**{name: values})
    return df.copy()  # many columns, put together piece by piece, are slow to work with


def settings(df: pd.DataFrame) -> pd.DataFrame:
    """Judge every setting of the grid, also by how far it is validation accuracy in disguise."""
    table = sensitivity(df)
    disguise = sensitivity(df.assign(test_acc=criterion_values(df, "val_acc")))
    key = ["test_env", "key"]
    disguise = disguise[[*key, "kendall_tau"]].rename(columns={"kendall_tau": "tau_with_val_acc"})
    return table.merge(disguise, on=key, validate="one_to_one")


def nested_settings(df: pd.DataFrame) -> pd.DataFrame:
    """Choose the setting on a data set's other test envs."""
    return nested_seeing_target(df, baselines=RIVALS)


def nested_criteria(df: pd.DataFrame) -> pd.DataFrame:
    """Choose among all criteria and all settings on a data set's other test envs."""
    return nested_seeing_target(df, baselines=RIVALS, candidates=candidates(df))


def across(studies: pd.DataFrame) -> pd.DataFrame:
    """Choose among all criteria and settings on the other data sets, and judge on this one."""
    names = list(dict.fromkeys(studies["dataset"]))
    as_envs = studies.assign(dataset="all", test_env=studies["dataset"].map(names.index))
    table = nested_seeing_target(as_envs, baselines=RIVALS, candidates=candidates(studies))
    return table.assign(dataset=[names[env] for env in table["test_env"]]).drop(columns="test_env")


def candidates(df: pd.DataFrame) -> list[str]:
    """All that could be chosen: layers have other names in other networks, so those of one network only."""
    settings = [setting.key for setting in grid_settings(df) if df[setting.key].notna().any()]
    if df["dataset"].nunique() > 1:
        settings = [key for key in settings if "_at_" not in key]
    return [*recorded(df), *settings]


def facts(df: pd.DataFrame, about: Mapping[str, Any]) -> pd.DataFrame:
    """Count what the records hold, of how many runs, and say where coverage was measured."""
    values = df[df["step"] > 0].groupby("run")[["nac_me", "test_acc"]].nunique()
    row = {
        "dataset": df["dataset"].iloc[0],
        "runs": len(values),
        "planned": about.get("planned", len(values)),
        "checkpoints": len(df),
        "layers": ", ".join(about.get("layers", [])) or "feeds the head",
        "degenerate": float(df["degenerate"].mean()),
        "constant_nac_me": int((values["nac_me"] == 1).sum()),
        "constant_test_acc": int((values["test_acc"] == 1).sum()),
    }
    return pd.DataFrame([row])


def by_env(df: pd.DataFrame) -> pd.DataFrame:
    """Correlate each criterion with test accuracy in each test env, within runs and across the sweep."""
    return pd.concat([nacme.rank_correlation(df, criteria(df), per, pool_algorithms=True) for per in PER])


def overall(df: pd.DataFrame) -> pd.DataFrame:
    """Correlate within runs, all test envs of the data set together, beside the differences from the rivals."""
    names = criteria(df)
    whole = df.assign(test_env=-1)
    table = nacme.rank_correlation(whole, names, pool_algorithms=True).drop(columns="test_env")
    table = table.merge(controls.beyond(df, names), "left", "criterion")
    as_test = whole.assign(test_acc=criterion_values(df, "val_acc"))
    with_val_acc = nacme.rank_correlation(as_test, names, n_boot=1, pool_algorithms=True)
    table["tau_with_val_acc"] = with_val_acc["kendall_tau"]
    for rival in RIVALS:
        others = [name for name in names if name != rival]
        compared = compare_criteria(whole, others, rival, pool_algorithms=True).set_index("criterion")
        told = compared[["n_runs", "difference", "low", "high", "p_value", "p_holm"]]
        columns = told.add_prefix(f"less_{rival}_")
        table = table.merge(columns, "left", left_on="criterion", right_index=True)
    for per in PER:
        regret = summarise_quality(selection_quality(df, names, per)).set_index("criterion")["regret"]
        table[f"regret_per_{per}"] = table["criterion"].map(regret)
    return table


def honest(df: pd.DataFrame, pairs: pd.DataFrame | None) -> pd.DataFrame | None:
    """Choose settings and criteria without the target, where runs hold out several test envs.

    Parameters
    ----------
    df : DataFrame
        A study's records, as they were recorded.
    pairs : DataFrame, optional
        Those of the study with pairs of test envs on the same data, whose algorithms count.

    Returns
    -------
    DataFrame or None
        `nested_choice` among the settings (``among == "settings"``) and among the criteria and
        settings (``"all"``).
    """
    whole = df
    if pairs is not None:
        kept = df[df["algorithm"].isin(pairs["algorithm"])]
        whole = pd.concat([kept, pairs.assign(run="pairs/" + pairs["run"])], ignore_index=True)
    if not (whole["n_test_envs"] > 1).any():
        return None
    tables = [nested_choice(whole, baselines=RIVALS).assign(among="settings")]
    tables.append(nested_choice(whole, baselines=RIVALS, candidates=candidates(whole)).assign(among="all"))
    return pd.concat(tables, ignore_index=True)


def choices(df: pd.DataFrame) -> pd.DataFrame:
    """Say what each criterion's choices are worth over test envs, and how often they beat the rivals'."""
    tables = [selection_quality(df, criteria(df), per, baselines=RIVALS) for per in PER]
    return pd.concat([summarise_quality(table) for table in tables])


def regret_per_run(df: pd.DataFrame) -> pd.DataFrame:
    """Average over the runs of a test env what stopping by each criterion costs, in points, and what ties do."""
    chosen = nacme.select(df, criteria(df), per="run")
    averaged = ["regret", "regret_over_ties", "n_tied", "no_choice"]
    chosen = chosen.astype(dict.fromkeys(averaged, float))
    return chosen.groupby(["dataset", "test_env", "criterion"], as_index=False)[averaged].mean()


def splits(df: pd.DataFrame, inside: pd.DataFrame) -> pd.DataFrame:
    """Compare coverage of the validation splits with coverage of the training splits, at the same checkpoints.

    Parameters
    ----------
    df, inside : DataFrame
        The study's records, and those of checkpoints measured again on the ``in`` splits.

    Returns
    -------
    DataFrame
        One row per key that both hold: tau with test accuracy within runs on either splits, their difference with
        its interval over runs, and the tau between the two.
    """
    key = ["run", "step"]
    keys = ["nac_me", *(setting.key for setting in grid_settings(inside))]
    both = df.merge(inside[[*key, *keys]], on=key, suffixes=("", " in"), validate="one_to_one")
    rows = []
    for name in keys:
        # compare_criteria wants names of criteria; these two are not asked for here
        pair = both.assign(test_env=-1, nac_me_seeing_target=both[name], any_seeing_target=both[f"{name} in"])
        found = compare_criteria(pair, "any_seeing_target", "nac_me_seeing_target", pool_algorithms=True).iloc[0]
        agree = nacme.rank_correlation(
            pair.assign(test_acc=both[f"{name} in"]), "nac_me_seeing_target", pool_algorithms=True
        )
        rows.append(
            {
                "dataset": found["dataset"],
                "key": name,
                "n_runs": found["n_runs"],
                "tau_out": found["baseline_value"],
                "tau_in": found["value"],
                "in_less_out": found["difference"],
                "low": found["low"],
                "high": found["high"],
                "tau_between": agree["kendall_tau"].iloc[0],
            }
        )
    return pd.DataFrame(rows)
