"""Sensitivity to NAC-ME's settings, and the nested choice among them, on sweeps whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from nacme.errors import CriterionError
from nacme.study.sensitivity import grid_settings, nested_choice, nested_seeing_target, sensitivity

GOOD, BAD = "nac_me_a1p0_m50_o500", "nac_me_a100p0_m50_o0p08"


def sweep(scores, runs=3, checkpoints=8, seed=0):
    """Build the frame of a sweep whose settings' values are a function of (test env, test accuracy, noise)."""
    rng = np.random.default_rng(seed)
    rows = []
    for env in range(3):
        for run in range(runs):
            accuracy = np.sort(rng.uniform(0.3, 0.9, checkpoints))
            rng.shuffle(accuracy)
            for index, acc in enumerate(accuracy):
                row = {
                    "run": f"run{env}{run}",
                    "dataset": "Toy",
                    "algorithm": "ERM",
                    "test_env": env,
                    "test_envs": str(env),
                    "n_test_envs": 1,
                    "n_envs": 3,
                    "trial_seed": 0,
                    "hparams_seed": run,
                    "seed": 0,
                    "step": 10 * (index + 1),
                    "test_acc": acc,
                    "test_out_acc": acc,
                    "val_acc": rng.uniform(),
                    "checkpoint": None,
                    "done": True,
                }
                rows.append({**row, **{key: score(env, acc, rng) for key, score in scores.items()}})
    return pd.DataFrame(rows)


def right(env, accuracy, rng):
    return accuracy


def noise(env, accuracy, rng):
    return rng.uniform()


def test_table_equals_scipy_and_regret_by_hand():
    df = sweep({GOOD: right, BAD: noise})
    table = sensitivity(df).set_index(["test_env", "key"])
    for env in range(3):
        taus, regrets = [], []
        for _, run in df[df.test_env == env].groupby("run"):
            taus.append(kendalltau(run[BAD], run.test_acc).statistic)
            regrets.append(100 * (run.test_acc.max() - run.test_acc[run[BAD].idxmax()]))
        assert table.loc[(env, BAD), "kendall_tau"] == pytest.approx(np.mean(taus))
        assert table.loc[(env, BAD), "regret"] == pytest.approx(np.mean(regrets))
        assert table.loc[(env, GOOD), "kendall_tau"] == pytest.approx(1.0)
        assert table.loc[(env, GOOD), "regret"] == pytest.approx(0.0)
    assert table.loc[(0, GOOD), "alpha"] == 1.0
    assert table.loc[(0, BAD), "fill"] == 0.08
    assert str(table.loc[(0, GOOD), "fill"]) == "500"


def test_the_choice_that_sees_the_target_does_not_look_at_the_env_it_is_judged_on():
    """A setting that is right on env 0 alone, and wrong elsewhere, must not be chosen for env 0."""
    df = sweep(
        {
            GOOD: lambda env, acc, rng: -acc if env == 0 else acc,
            BAD: lambda env, acc, rng: acc if env == 0 else -acc,
        }
    )
    chosen = nested_seeing_target(df).set_index(["test_env", "choice"])
    assert chosen.loc[(0, "nested_seeing_target"), "key"] == GOOD
    assert chosen.loc[(0, "nested_seeing_target"), "kendall_tau"] == pytest.approx(-1.0)
    assert chosen.loc[(0, "peeking"), "key"] == BAD
    assert chosen.loc[(0, "peeking"), "kendall_tau"] == pytest.approx(1.0)


def test_the_choice_that_sees_the_target_finds_the_setting_that_is_right_everywhere():
    df = sweep({GOOD: right, BAD: noise})
    chosen = nested_seeing_target(df)
    assert set(chosen["choice"]) == {"nested_seeing_target", "peeking", "val_acc", "last"}
    nested = chosen[chosen.choice == "nested_seeing_target"]
    assert set(nested["key"]) == {GOOD}
    assert nested["regret"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.filterwarnings("ignore::nacme.errors.NacmeWarning")
def test_a_setting_that_is_undefined_somewhere_is_no_candidate():
    df = sweep({GOOD: noise, BAD: lambda env, acc, rng: 0.5 if env == 2 else acc})
    chosen = nested_seeing_target(df).set_index(["test_env", "choice"])
    assert chosen.loc[(0, "nested_seeing_target"), "key"] == GOOD
    assert chosen.loc[(2, "nested_seeing_target"), "key"] == BAD


def test_a_test_env_where_all_models_are_equally_good_has_no_say_in_the_choice():
    df = sweep({GOOD: right, BAD: noise})
    df.loc[df.test_env == 2, "test_acc"] = 0.1
    chosen = nested_seeing_target(df).set_index(["test_env", "choice"])
    assert chosen.loc[(0, "nested_seeing_target"), "key"] == GOOD
    assert chosen.loc[(0, "nested_seeing_target"), "kendall_tau"] == pytest.approx(1.0)
    assert chosen.loc[(2, "nested_seeing_target"), "key"] == GOOD
    assert np.isnan(chosen.loc[(2, "nested_seeing_target"), "kendall_tau"])


def test_one_test_env_has_no_nested_choice():
    df = sweep({GOOD: right, BAD: noise})
    chosen = nested_seeing_target(df[df.test_env == 1]).set_index("choice")
    assert np.isnan(chosen.loc["nested_seeing_target", "kendall_tau"])
    assert chosen.loc["peeking", "kendall_tau"] == pytest.approx(1.0)


def test_records_without_a_grid():
    df = sweep({})
    assert grid_settings(df) == []
    with pytest.raises(CriterionError, match="--nac_grid"):
        sensitivity(df)


def with_pairs(scores, alone=True, seed=1):
    """Build a sweep over 4 envs, each held out alone and with each other, as `sweep` builds its rows."""
    rng = np.random.default_rng(seed)
    rows = []
    pairs = [(i, j) for i in range(4) for j in range(i)]
    for held_out in [*((i,) for i in range(4) if alone), *pairs]:
        for run in range(2):
            steps = []
            for index in range(8):
                accs = {env: rng.uniform(0.3, 0.9) for env in held_out}
                values = {key: score(accs, rng) for key, score in scores.items()}
                for env, acc in accs.items():
                    head = {"run": f"{held_out}{run}", "dataset": "Toy", "algorithm": "ERM", "trial_seed": 0}
                    head |= {"test_env": env, "test_envs": ",".join(map(str, sorted(held_out)))}
                    head |= {"n_test_envs": len(held_out), "n_envs": 4, "hparams_seed": run, "seed": 0}
                    found = {
                        "step": 10 * index + 10,
                        "test_acc": acc,
                        "test_out_acc": acc,
                        "val_acc": rng.uniform(),
                    }
                    steps.append({**head, **found, "checkpoint": None, "done": True, **values})
            rows += steps
    return pd.DataFrame(rows)


def best_on(envs):
    return lambda accs, rng: np.mean([acc for env, acc in accs.items() if env in envs] or [rng.uniform()])


@pytest.mark.parametrize("alone", [True, False])
def test_the_honest_choice_is_blind_to_the_target_and_to_runs_that_trained_on_it(alone):
    df = with_pairs({GOOD: best_on({0, 1}), BAD: best_on({2, 3}), "nac_me_a1_m50_o1": noise_of}, alone)
    before = nested_choice(df).set_index(["test_env", "choice"])
    rng = np.random.default_rng(2)
    for env in range(4):
        other = df.copy()
        seen = (other["test_env"] == env) | ~other["test_envs"].str.contains(str(env))
        assert seen.any()
        other.loc[seen, "test_acc"] = rng.uniform(size=seen.sum())
        after = nested_choice(other).set_index(["test_env", "choice"])
        assert after.loc[(env, "nested"), "key"] == before.loc[(env, "nested"), "key"]
        assert after.loc[(env, "peeking"), "kendall_tau"] != before.loc[(env, "peeking"), "kendall_tau"]
    assert (before["n_chose"] == 6).all()
    assert set(before["judged_on"]) == {"single" if alone else "several"}


def noise_of(accs, rng):
    return rng.uniform()


def test_the_honest_choice_by_hand():
    df = with_pairs({GOOD: best_on({0, 1, 2, 3}), BAD: best_on({0})})
    chosen = nested_choice(df).set_index(["test_env", "choice"])
    for env in range(4):
        taus = {}
        for key in (GOOD, BAD):
            held_out = df[
                (df["n_test_envs"] == 2) & df["test_envs"].str.contains(str(env)) & (df["test_env"] != env)
            ]
            cells = held_out.groupby(["test_env", "run"]).apply(
                lambda r, k=key: kendalltau(r[k], r["test_acc"]).statistic
            )
            taus[key] = cells.groupby("test_env").mean().mean()
        best = max(taus, key=taus.get)
        assert chosen.loc[(env, "nested"), "key"] == best
        alone = df[(df["n_test_envs"] == 1) & (df["test_env"] == env)].groupby("run")
        tau = alone.apply(lambda r, k=best: kendalltau(r[k], r["test_acc"]).statistic).mean()
        assert chosen.loc[(env, "nested"), "kendall_tau"] == pytest.approx(tau)
        regret = alone.apply(
            lambda r, k=best: 100 * (r["test_acc"].max() - r.loc[r[k].idxmax(), "test_acc"])
        ).mean()
        assert chosen.loc[(env, "nested"), "regret"] == pytest.approx(regret)
    assert set(chosen.index.unique("choice")) == {"nested", "peeking", "val_acc", "last"}


def test_without_pairs_there_is_no_honest_choice_and_the_remedy_is_said():
    with pytest.raises(CriterionError, match="test_envs: pairs"):
        nested_choice(sweep({GOOD: right, BAD: noise}))
