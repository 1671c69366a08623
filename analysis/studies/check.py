"""The studies' tau and regret again, with SciPy alone: python -m analysis.studies.check analysis/studies/NAME"""

import sys
from collections import defaultdict

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

UP = {"val_acc": 1, "val_acc_worst": 1, "nac_me": 1, "val_loss": -1, "ece": -1, "step": 1}  # which way is better
records = pd.read_parquet(f"{sys.argv[1]}/records.parquet").to_dict("records")
ours = pd.read_csv(f"{sys.argv[1]}/by_env.csv").query("population == 'run'").set_index(["test_env", "criterion"])
runs, envs = defaultdict(list), defaultdict(list)
for record in records:
    runs[record["test_env"], record["run"]].append(record)
for (env, _), checkpoints in runs.items():
    envs[env].append(sorted(checkpoints, key=lambda record: record["step"]))
regrets = pd.read_csv(f"{sys.argv[1]}/regret_per_run.csv").set_index(["test_env", "criterion"])["regret"]
apart = {"tau": 0.0, "regret": 0.0}
for env, of_env in sorted(envs.items()):
    best = {name: [] for name in UP}
    for name, sign in UP.items():
        taus = []
        for run in of_env:
            value, accuracy = (np.array([r[key] for r in run], float) for key in (name, "test_acc"))
            taus.append(kendalltau(sign * value[1:], accuracy[1:]).statistic)  # without step 0
            best[name].append(100 * (accuracy.max() - accuracy[np.nanargmax(sign * value)]))
        defined = [tau for tau in taus if not np.isnan(tau)]
        tau, regret = float(np.mean(defined)) if defined else np.nan, float(np.mean(best[name]))
        key = (env, "last" if name == "step" else name)
        for kind, mine, yours in (("tau", tau, ours.loc[key, "kendall_tau"]), ("regret", regret, regrets[key])):
            # undefined for both is agreement; for one of them, the result is nan
            gap = 0.0 if np.isnan(mine) and np.isnan(yours) else abs(mine - yours)
            apart[kind] = np.maximum(apart[kind], gap)
        print(f"env {env} {name:>13}: tau {tau:.4f}, regret {regret:.2f} points")
print(f"largest differences from ours: tau {apart['tau']:.1e}, regret {apart['regret']:.1e}")
