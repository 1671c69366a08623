"""What separates coverage from counting, test env by test env, and the hypothesis that was declared beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit

import nacme
from nacme.criteria.registry import all_criteria, oriented_values
from nacme.inference import bootstrap, statistics
from nacme.settings import parse_key
from nacme.study.comparison import compare_criteria
from nacme.study.correlation import BEYOND

#: Coverage that is set against the shams, where the records hold it; and the setting of PROTOCOL.md.
COVERAGE = ("nac_me", "nac_me_all", "nac_me_auto", "nac_me_robust")
DECLARED = {"alpha": 1.0, "bins": 50, "fill": 0.1, "samples": "correct"}
#: Studies that the declared hypothesis is about.
CONFIRMING = ("pacs96_single_source", "emoji96_single_source")
PLANNED = 56


def shams(df: pd.DataFrame) -> list[str]:
    """Name the controls that the records hold."""
    return [c.name for c in all_criteria().values() if c.control and c.name in df and df[c.name].notna().any()]


def declared_setting(df: pd.DataFrame) -> str | None:
    """Find the key of the setting that PROTOCOL.md declares: on the ``out`` splits, at what feeds the head."""
    found = [setting for column in df if (setting := parse_key(str(column))) is not None]
    found = [s for s in found if all(getattr(s, name) == value for name, value in DECLARED.items())]
    # a split or a layer of its own is named in the key; otherwise they are those of nac_me
    found = [s for s in found if s.split != "in" and (s.layer == "mean" or s.layer.startswith("classifier"))]
    found.sort(key=lambda s: (s.split != "out", s.layer == "mean"))
    return found[0].key if found else None


def beyond(df: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Average within runs what is left of a correlation at a fixed step, and beyond validation accuracy too.

    Parameters
    ----------
    df : DataFrame
        Runs with one target each.
    names : sequence of str

    Returns
    -------
    DataFrame
        One row per criterion: ``criterion``, then value, ``_low`` and ``_high`` of ``partial`` (step fixed) and of
        ``beyond`` (step and ``val_acc`` fixed), with intervals over runs, and the number of runs of each.
    """
    as_envs = df.assign(test_env=df["run"].factorize()[0])  # one row a run
    table = nacme.rank_correlation(as_envs, names, n_boot=1, pool_algorithms=True)
    rows = []
    for name, of_runs in table.groupby("criterion", sort=False):
        row: dict[str, object] = {"criterion": name}
        for short, column in (("partial", "partial_spearman_step"), ("beyond", BEYOND)):
            values = of_runs[column].to_numpy(float)
            values = values[np.isfinite(values)]
            weights = bootstrap.run_weights(len(values), 1000, bootstrap.generator(0, "partial"))
            low, high = bootstrap.mean_interval(values, weights, 0.95)
            row[short] = float(values.mean()) if len(values) else float("nan")
            row |= {f"{short}_low": float(low), f"{short}_high": float(high), f"{short}_runs": len(values)}
        rows.append(row)
    return pd.DataFrame(rows)


def against_shams(df: pd.DataFrame) -> pd.DataFrame:
    """Set each coverage against each sham within the same runs, and say what it knows beyond counting.

    Parameters
    ----------
    df : DataFrame
        Runs with one target each.

    Returns
    -------
    DataFrame
        One row per (coverage, sham): ``dataset, criterion, control, n_runs, value, control_value, difference,
        low, high, p_value, p_holm`` of tau within runs, paired over runs and adjusted within the table, then
        `beyond` of the criterion. Where no sham was recorded, one row per coverage without a control.
    """
    names = [name for name in COVERAGE if name in df and df[name].notna().any()]
    names += [key for key in [declared_setting(df)] if key]
    whole = df.assign(test_env=-1)
    tables = []
    for sham in shams(df):
        told = compare_criteria(whole, names, sham, pool_algorithms=True)
        tables.append(told.rename(columns={"baseline": "control", "baseline_value": "control_value"}))
    columns = ["control", "n_runs", "value", "control_value", "difference", "low", "high", "p_value"]
    if tables:
        table = pd.concat(tables, ignore_index=True)
    else:
        taus = nacme.rank_correlation(whole, names, n_boot=1, pool_algorithms=True)
        table = taus.rename(columns={"kendall_tau": "value"}).reindex(columns=["criterion", *columns])
        table["n_runs"], table["value"] = taus["n_runs"], taus["kendall_tau"]
    table = table[["criterion", *columns]].assign(dataset=df["dataset"].iloc[0])
    table["p_holm"] = bootstrap.holm(table["p_value"].to_numpy(float))
    table = table.merge(beyond(df, names), "left", "criterion")
    return table[["dataset", "criterion", *columns, "p_holm", *table.columns[len(columns) + 3 :]]]


def env_level(by_env: pd.DataFrame, rival: str = "val_acc") -> pd.DataFrame:
    """Say in each test env how a criterion's tau differs from the rival's, and average over test envs.

    Parameters
    ----------
    by_env : DataFrame
        `nacme.rank_correlation` within runs.
    rival : str

    Returns
    -------
    DataFrame
        One row per criterion: ``dataset, criterion``, one column per test env with the difference in tau, then
        ``n_envs, n_ahead, mean, low, high``: the interval is Student's over test envs, none over too few.
    """
    within = by_env[by_env["population"] == "run"]
    taus = within.pivot(index="criterion", columns="test_env", values="kendall_tau")
    apart = taus.sub(taus.loc[rival]).drop(index=rival)
    rows = []
    for name in [name for name in within["criterion"].unique() if name != rival]:
        values = apart.loc[name].dropna().to_numpy(float)
        mean = float(values.mean()) if len(values) else float("nan")
        half = float("nan")
        if bootstrap.too_few(len(values)) is None:
            half = float(-stdtrit(len(values) - 1, 0.025) * values.std(ddof=1) / np.sqrt(len(values)))
        counts = {"n_envs": len(values), "n_ahead": int((values > 0).sum())}
        ends = {"mean": mean, "low": mean - half, "high": mean + half}
        rows.append({"dataset": within["dataset"].iloc[0], "criterion": name, **apart.loc[name], **counts, **ends})
    return pd.DataFrame(rows)


def confirmation(studies: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Make the test that PROTOCOL.md declares, on the studies that it names.

    Parameters
    ----------
    studies : sequence of DataFrame
        Records, the mean over targets taken; each with the declared setting.

    Returns
    -------
    DataFrame
        One row per data set and for ``all`` together, by step 0 (``out``, ``in``) and by what is done with runs
        where a tau is undefined (``left out``, ``as 0``): ``dataset, step0, undefined, n_runs, n_undefined, value,
        val_acc, difference, low, high, p_value`` and, for all with undefined left out, the ``verdict``.
    """
    rows: list[dict[str, object]] = []
    for step0 in ("out", "in"):
        pairs = {}
        for df in studies:
            key = declared_setting(df)
            if key is None:
                raise SystemExit(f"{df.attrs.get('path')} does not hold the setting that PROTOCOL.md declares")
            pairs[str(df["dataset"].iloc[0])] = _taus(df, key, include_step0=step0 == "in")
        pairs["all"] = np.concatenate(list(pairs.values()))
        for dataset, taus in pairs.items():
            for undefined in ("left out", "as 0"):
                rows.append({"dataset": dataset, "step0": step0, "undefined": undefined, **_test(taus, undefined)})
    table = pd.DataFrame(rows)
    table["verdict"] = None
    main = table["undefined"].eq("left out")
    table.loc[main & table["dataset"].eq("all"), "verdict"] = _verdict(table[main])
    return table


def _taus(df: pd.DataFrame, key: str, *, include_step0: bool) -> np.ndarray:
    """Tau of the setting and of val_acc in each run, shape (R, 2)."""
    df = df.assign(setting=oriented_values(df, key))
    kept = df if include_step0 else df[df["step"] > 0]
    found = []
    for _, run in kept.groupby("run", sort=True):
        both = run[["setting", "val_acc", "test_acc"]].dropna().to_numpy(float).T
        found.append([statistics.kendall_tau(values, both[2]) for values in both[:2]])
    return np.array(found).reshape(-1, 2)


def _test(taus: np.ndarray, undefined: str) -> dict[str, object]:
    defined = np.isfinite(taus).all(1)
    used = np.nan_to_num(taus) if undefined == "as 0" else taus[defined]
    row: dict[str, object] = {"n_runs": len(used), "n_undefined": int((~defined).sum())}
    if not len(used):
        return row
    apart = used[:, 0] - used[:, 1]
    rng = bootstrap.generator(0, "confirmation")
    low, high = bootstrap.mean_interval(apart, bootstrap.run_weights(len(apart), 10_000, rng), 0.95)
    swapped, complete = bootstrap.swaps(len(apart), 100_000, rng)
    p = bootstrap.permutation_p(np.where(swapped, -1.0, 1.0) @ apart, float(apart.sum()), complete)
    means = {"value": used[:, 0].mean(), "val_acc": used[:, 1].mean(), "difference": apart.mean()}
    return row | means | {"low": float(low), "high": float(high), "p_value": p}


def _verdict(table: pd.DataFrame) -> str:
    """Read the table as PROTOCOL.md says."""
    of = table.set_index(["dataset", "step0"])
    out, inside = of.loc[("all", "out")], of.loc[("all", "in")]
    if out["n_runs"] + out["n_undefined"] < PLANNED / 2:
        return "preliminary: fewer than half of the runs"
    agree = all(row["difference"] > 0 and row["p_value"] <= 0.05 for row in (out, inside))
    if agree and (of.xs("out", level="step0")["difference"] > 0).all():
        return "confirmed"
    if (out["difference"] < 0 and out["p_value"] <= 0.05) or out["high"] < 0.05:
        return "refuted"
    return "undecided"
