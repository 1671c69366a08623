"""Sensitivity to NAC-ME's settings, and the nested choice among them, on sweeps whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from nacme.errors import CriterionError
from nacme.sensitivity import grid_settings, nested_choice, sensitivity

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


def test_nested_choice_does_not_look_at_the_env_it_is_judged_on():
    """A setting that is right on env 0 alone, and wrong elsewhere, must not be chosen for env 0."""
    df = sweep(
        {
            GOOD: lambda env, acc, rng: -acc if env == 0 else acc,
            BAD: lambda env, acc, rng: acc if env == 0 else -acc,
        }
    )
    chosen = nested_choice(df).set_index(["test_env", "choice"])
    assert chosen.loc[(0, "nested"), "key"] == GOOD
    assert chosen.loc[(0, "nested"), "kendall_tau"] == pytest.approx(-1.0)
    assert chosen.loc[(0, "peeking"), "key"] == BAD
    assert chosen.loc[(0, "peeking"), "kendall_tau"] == pytest.approx(1.0)


def test_nested_choice_finds_the_setting_that_is_right_everywhere():
    df = sweep({GOOD: right, BAD: noise})
    chosen = nested_choice(df)
    assert set(chosen["choice"]) == {"nested", "peeking", "val_acc", "last"}
    nested = chosen[chosen.choice == "nested"]
    assert set(nested["key"]) == {GOOD}
    assert nested["regret"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.filterwarnings("ignore::nacme.errors.NacmeWarning")
def test_a_setting_that_is_undefined_somewhere_is_no_candidate():
    df = sweep({GOOD: noise, BAD: lambda env, acc, rng: 0.5 if env == 2 else acc})
    chosen = nested_choice(df).set_index(["test_env", "choice"])
    assert chosen.loc[(0, "nested"), "key"] == GOOD
    assert chosen.loc[(2, "nested"), "key"] == BAD


def test_a_test_env_where_all_models_are_equally_good_has_no_say_in_the_nested_choice():
    df = sweep({GOOD: right, BAD: noise})
    df.loc[df.test_env == 2, "test_acc"] = 0.1
    chosen = nested_choice(df).set_index(["test_env", "choice"])
    assert chosen.loc[(0, "nested"), "key"] == GOOD
    assert chosen.loc[(0, "nested"), "kendall_tau"] == pytest.approx(1.0)
    assert chosen.loc[(2, "nested"), "key"] == GOOD
    assert np.isnan(chosen.loc[(2, "nested"), "kendall_tau"])


def test_one_test_env_has_no_nested_choice():
    df = sweep({GOOD: right, BAD: noise})
    chosen = nested_choice(df[df.test_env == 1]).set_index("choice")
    assert np.isnan(chosen.loc["nested", "kendall_tau"])
    assert chosen.loc["peeking", "kendall_tau"] == pytest.approx(1.0)


def test_records_without_a_grid():
    df = sweep({})
    assert grid_settings(df) == []
    with pytest.raises(CriterionError, match="--nac_grid"):
        sensitivity(df)
