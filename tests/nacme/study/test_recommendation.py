"""The recommendation: one rule, its reason, and evidence that does not look at the target."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import nacme
from nacme.cli import app
from nacme.study.recommendation import RECOMMEND_COLUMNS, pair_gains, preferred, recommend

ENVS = 3


def row(run, test_envs, test_env, step, candidate, val, test, *, trial=0, networks=1):
    return {
        "run": run, "dataset": "D", "algorithm": "ERM", "test_env": test_env,
        "test_envs": ",".join(map(str, test_envs)), "n_test_envs": len(test_envs), "n_envs": ENVS,
        "trial_seed": trial, "hparams_seed": 0, "seed": 0, "step": step, "candidate": candidate,
        "test_acc": test, "test_out_acc": test, "val_acc": val, "val_acc_worst": val,
        "checkpoint": f"{run}/{candidate}", "done": True, "networks": networks,
    }  # fmt: skip


def table(*, gains=(), sma_val=0.9):
    """Runs of test env 0, and pairs (0, v) whose averages are better on v by the gains given, trial by trial."""
    rows = [
        row("a", [0], 0, 10, "raw", 0.80, 0.50),
        row("a", [0], 0, 20, "raw", 0.85, 0.55),
        row("a", [0], 0, 20, "sma", sma_val, 0.60),
        row("candidates/e", [0], 0, 20, "ensemble", 0.95, 0.70, networks=3),
    ]
    for trial, gain in enumerate(gains):
        name = f"pair{trial}"
        rows += [row(name, [0, 1], env, 20, "raw", 0.8, 0.4, trial=trial) for env in (0, 1)]
        # on the target itself the average is a disaster, which nobody may see
        accuracies = {0: 0.0, 1: 0.4 + gain}
        rows += [row(name, [0, 1], env, 20, "sma", 0.9, accuracies[env], trial=trial) for env in (0, 1)]
    return pd.DataFrame(rows)


def test_the_rule_is_the_highest_validation_accuracy():
    only = recommend(table()).iloc[0]
    assert (only["candidate"], only["run"], only["step"], only["test_acc"]) == ("sma", "a", 20, 0.60)
    assert "0.900" in only["reason"]
    assert "0.850" in only["reason"]
    assert recommend(table(), one_network=False).iloc[0]["candidate"] == "ensemble"
    assert tuple(recommend(table()).columns) == RECOMMEND_COLUMNS


def test_a_tie_goes_to_the_raw_checkpoint_which_is_as_good_as_itself():
    only = recommend(table(sma_val=0.85)).iloc[0]
    assert (only["candidate"], only["p_at_least_as_good"]) == ("raw", 1.0)
    assert np.isnan(only["cost_if_wrong"])


def test_evidence_comes_from_pairs_of_held_out_envs_judged_on_the_other():
    df = table(gains=[0.02, 0.01, 0.0, -0.03, -0.01])
    assert pair_gains(df, "D", 0) == [2.0, 1.0, 0.0, -3.0, -1.0]
    only = recommend(df).iloc[0]
    assert only["p_at_least_as_good"] == pytest.approx((3 + 1) / (5 + 2))
    assert only["cost_if_wrong"] == pytest.approx(2.0)
    assert "5 choices of this sweep's runs with pairs" in only["evidence"]


def test_no_label_of_the_target_decides_how_sure():
    df = table(gains=[0.02, -0.01])
    changed = df.assign(test_acc=df["test_acc"].where(df["test_env"] != 0, 0.123))
    for key in ("candidate", "step", "p_at_least_as_good", "cost_if_wrong", "evidence"):
        assert recommend(changed).iloc[0][key] == recommend(df).iloc[0][key]


def test_pairs_without_the_target_are_no_evidence():
    df = table(gains=[0.02])
    other = df.assign(test_envs=df["test_envs"].replace("0,1", "1,2"), test_env=df["test_env"])
    assert pair_gains(other, "D", 0) == []


def test_stored_evidence_is_named_and_else_the_reason_given():
    stored = recommend(table()).iloc[0]
    assert 0 < stored["p_at_least_as_good"] < 1
    assert stored["evidence"].startswith("stored: a pilot")
    none = recommend(table(), one_network=False).iloc[0]
    assert np.isnan(none["p_at_least_as_good"])
    assert none["evidence"].startswith("none: no runs with pairs of test envs")


def test_raw_checkpoints_alone_are_recommended_too(simulated_sweep):
    df = nacme.load_sweep(simulated_sweep)
    found = recommend(df)
    assert list(found["test_env"]) == [0, 1, 2]
    assert set(found["candidate"]) == {"raw"}
    best = df.sort_values("val_acc").groupby("test_env")["val_acc"].max()
    assert preferred(df)["value"].tolist() == best.tolist()


def test_the_command_gives_the_promised_keys(simulated_sweep):
    result = CliRunner().invoke(app, ["recommend", str(simulated_sweep), "--format", "json"])
    rows = json.loads(result.stdout)
    assert len(rows) == 3
    promised = ["dataset", "test_env", "run", "step", "candidate", "reason", "test_acc"]
    assert list(rows[0])[:9] == [*promised, "p_at_least_as_good", "checkpoint"]
    assert rows[0]["cost_if_wrong"] is None
    assert "there are raw checkpoints only" in result.stderr
    assert CliRunner().invoke(app, ["recommend", str(simulated_sweep), "--any"]).exit_code == 0
