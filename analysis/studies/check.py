"""The studies' tau, regret and primary test again, by SciPy alone: python -m analysis.studies.check FOLDER/NAME

Given FOLDER itself: the test that PROTOCOL.md declares, from the records of the studies that it names.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, permutation_test

UP = {"val_acc": 1, "val_acc_worst": 1, "nac_me": 1, "val_loss": -1, "ece": -1, "step": 1}  # which way is better
MOST = 9_999  # permutations


def declared(folder: Path) -> None:
    """Compare ``confirmation.csv`` with what SciPy gives."""
    ours = pd.read_csv(folder / "confirmation.csv").query("dataset == 'all'").set_index(["step0", "undefined"])
    gaps = {"difference": 0.0, "p": 0.0}
    for step0, first in (("out", 1), ("in", 0)):
        pairs = []
        for path in sorted(folder.glob("*96_single_source/records.parquet")):
            table = pd.read_parquet(path)
            (key,) = [name for name in table if re.fullmatch(r"nac_me_a1(p0)?_m50_o0p1(_out)?", name)]
            table["test_acc"] = table.groupby(["run", "step"])["test_acc"].transform("mean")
            for _, run in table.drop_duplicates(["run", "step"]).sort_values("step").groupby("run"):
                kept = run.iloc[first:]
                pairs.append([kendalltau(kept[name], kept["test_acc"]).statistic for name in (key, "val_acc")])
        taus = np.array(pairs)
        for undefined in ("left out", "as 0"):
            used = np.nan_to_num(taus) if undefined == "as 0" else taus[~np.isnan(taus).any(axis=1)]
            apart = used[:, 0] - used[:, 1]
            test = permutation_test((apart,), np.mean, permutation_type="samples", n_resamples=MOST)
            row = ours.loc[(step0, undefined)]
            gaps["difference"] = max(gaps["difference"], abs(apart.mean() - row["difference"]))
            gap = abs(min(test.pvalue, 1) - row["p_value"])
            gaps["p"] = max(gaps["p"], 0.0 if gap <= tolerance(min(test.pvalue, 1), len(apart)) else gap)
            said = f"{apart.mean():.4f} over {len(apart)} runs, p {test.pvalue:.4f}"
            print(f"step 0 {step0}, undefined {undefined}: {said}")
    print("largest differences from ours: " + ", ".join(f"{kind} {gap:.1e}" for kind, gap in gaps.items()))


def tolerance(p: float, runs: int) -> float:
    """How far two p-values may lie apart that are drawn where there are too many ways to visit all."""
    return 0.0 if 2**runs <= MOST else 1 / MOST + 5 * float(np.sqrt(max(p, 1 / MOST) / MOST))


def study(folder: Path) -> None:
    """Compare a study's tables with what SciPy gives."""
    table = pd.read_parquet(f"{folder}/records.parquet")
    if (table["n_test_envs"] > 1).any():  # single source: the mean over a run's test envs, one observation a run
        table["test_acc"] = table.groupby(["run", "step"])["test_acc"].transform("mean")
        table = table.drop_duplicates(["run", "step"]).assign(test_env=lambda rows: rows["test_envs"])
    records = table.to_dict("records")
    ours = pd.read_csv(f"{folder}/by_env.csv").query("population == 'run'").set_index(["test_env", "criterion"])
    runs, envs = defaultdict(list), defaultdict(list)
    for record in records:
        runs[record["test_env"], record["run"]].append(record)
    for (env, _), checkpoints in runs.items():
        envs[env].append(sorted(checkpoints, key=lambda record: record["step"]))
    regrets = pd.read_csv(f"{folder}/regret_per_run.csv").set_index(["test_env", "criterion"])
    apart = {"tau": 0.0, "regret": 0.0, "regret over ties": 0.0, "primary difference": 0.0, "primary p": 0.0}
    of_runs = defaultdict(list)
    for env, of_env in sorted(envs.items()):
        for name, sign in UP.items():
            taus, best, drawn = [], [], []
            for run in of_env:
                value, accuracy = (np.array([r[key] for r in run], float) for key in (name, "test_acc"))
                taus.append(kendalltau(sign * value[1:], accuracy[1:]).statistic)  # without step 0
                first = np.flatnonzero(sign * value == np.nanmax(sign * value))
                best.append(100 * (accuracy.max() - accuracy[first[0]]))
                drawn.append(100 * (accuracy.max() - accuracy[first].mean()))
            of_runs[name] += taus
            defined = [tau for tau in taus if not np.isnan(tau)]
            tau, regret, ties = np.mean(defined) if defined else np.nan, np.mean(best), np.mean(drawn)
            key = (env, "last" if name == "step" else name)
            for kind, mine, yours in (
                ("tau", tau, ours.loc[key, "kendall_tau"]),
                ("regret", regret, regrets.loc[key, "regret"]),
                ("regret over ties", ties, regrets.loc[key, "regret_over_ties"]),
            ):
                # undefined for both is agreement; for one of them, the result is nan
                gap = 0.0 if np.isnan(mine) and np.isnan(yours) else abs(mine - yours)
                apart[kind] = np.maximum(apart[kind], gap)
            print(f"env {env} {name:>13}: tau {tau:.4f}, regret {regret:.2f} points, {ties:.2f} drawn from ties")
    differences = np.subtract(of_runs["nac_me"], of_runs["val_acc"])
    differences = differences[~np.isnan(differences)]
    stored = pd.read_csv(f"{folder}/overall.csv").set_index("criterion").loc["nac_me"]
    apart["primary difference"] = abs(differences.mean() - stored["less_val_acc_difference"])
    test = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=MOST)
    p = min(test.pvalue, 1)
    gap = abs(p - stored["less_val_acc_p_value"])
    apart["primary p"] = 0.0 if gap <= tolerance(p, len(differences)) else gap
    print(f"nac_me less val_acc within runs: {differences.mean():.4f} over {len(differences)} runs, p {p:.4f}")
    print("largest differences from ours: " + ", ".join(f"{kind} {gap:.1e}" for kind, gap in apart.items()))


if __name__ == "__main__":
    (declared if Path(sys.argv[1], "confirmation.csv").exists() else study)(Path(sys.argv[1]))
