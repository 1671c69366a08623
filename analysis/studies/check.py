"""The studies' tau, regret and primary test again, by SciPy alone: python -m analysis.studies.check FOLDER/NAME"""

import sys
from collections import defaultdict

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, permutation_test

UP = {"val_acc": 1, "val_acc_worst": 1, "nac_me": 1, "val_loss": -1, "ece": -1, "step": 1}  # which way is better
MOST = 9_999  # permutations
records = pd.read_parquet(f"{sys.argv[1]}/records.parquet").to_dict("records")
ours = pd.read_csv(f"{sys.argv[1]}/by_env.csv").query("population == 'run'").set_index(["test_env", "criterion"])
runs, envs = defaultdict(list), defaultdict(list)
for record in records:
    runs[record["test_env"], record["run"]].append(record)
for (env, _), checkpoints in runs.items():
    envs[env].append(sorted(checkpoints, key=lambda record: record["step"]))
regrets = pd.read_csv(f"{sys.argv[1]}/regret_per_run.csv").set_index(["test_env", "criterion"])
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
stored = pd.read_csv(f"{sys.argv[1]}/overall.csv").set_index("criterion").loc["nac_me"]
apart["primary difference"] = abs(differences.mean() - stored["less_val_acc_difference"])
test = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=MOST)
p = min(test.pvalue, 1)
error = (
    0 if 2 ** len(differences) <= MOST else 1 / MOST + 5 * np.sqrt(max(p, 1 / MOST) / MOST)
)  # both are drawn then
gap = abs(p - stored["less_val_acc_p_value"])
apart["primary p"] = 0.0 if gap <= error else gap
print(f"nac_me less val_acc within runs: {differences.mean():.4f} over {len(differences)} runs, p {p:.4f}")
print("largest differences from ours: " + ", ".join(f"{kind} {gap:.1e}" for kind, gap in apart.items()))
