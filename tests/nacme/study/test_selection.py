from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import nacme
from nacme.errors import ConfigError, CriterionError, NacmeWarning, SweepError
from nacme.study.selection import SELECT_COLUMNS


def checkpoints(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A frame as load_sweep gives it; each row says what differs from the defaults."""
    base = {
        "run": "r0",
        "dataset": "Toy",
        "algorithm": "ERM",
        "test_env": 0,
        "test_envs": "0",
        "n_test_envs": 1,
        "n_envs": 3,
        "trial_seed": 0,
        "hparams_seed": 0,
        "seed": 0,
        "step": 0,
        "test_acc": 0.5,
        "test_out_acc": 0.5,
        "val_acc": 0.5,
        "checkpoint": None,
        "done": True,
    }
    df = pd.DataFrame([{**base, **row} for row in rows])
    df.attrs.update(path="some/sweep", exclusions=[])
    return df


TWO_RUNS = checkpoints(
    [
        {"run": "r0", "hparams_seed": 0, "step": 0, "nac_me": 0.1, "val_loss": 0.9, "test_acc": 0.30},
        {"run": "r0", "hparams_seed": 0, "step": 50, "nac_me": 0.4, "val_loss": 0.2, "test_acc": 0.70},
        {"run": "r0", "hparams_seed": 0, "step": 90, "nac_me": 0.3, "val_loss": 0.5, "test_acc": 0.90},
        {"run": "r1", "hparams_seed": 1, "step": 0, "nac_me": 0.2, "val_loss": 0.8, "test_acc": 0.20},
        {"run": "r1", "hparams_seed": 1, "step": 50, "nac_me": 0.6, "val_loss": 0.4, "test_acc": 0.60},
    ]
)


def test_across_a_sweep_the_best_checkpoint_of_all_runs_is_chosen() -> None:
    row = nacme.select(TWO_RUNS, "nac_me").iloc[0]
    assert tuple(nacme.select(TWO_RUNS, "nac_me").columns) == SELECT_COLUMNS
    assert (row.run, row.step, row.hparams_seed, row.value, row.test_acc) == ("r1", 50, 1, 0.6, 0.60)
    # The best of the population has 0.90: 30 points lost.
    assert row.oracle_acc == 0.90
    assert row.regret == pytest.approx(30)


def test_within_runs_each_run_has_its_own_oracle() -> None:
    table = nacme.select(TWO_RUNS, "nac_me", per="run").set_index("run")
    assert table.loc["r0", "step"] == 50
    assert table.loc["r0", "regret"] == pytest.approx(20)
    assert table.loc["r1", "regret"] == pytest.approx(0)


def test_a_criterion_where_lower_is_better_selects_its_minimum() -> None:
    row = nacme.select(TWO_RUNS, "val_loss").iloc[0]
    assert (row.run, row.step, row.value) == ("r0", 50, 0.2)


def test_the_oracle_has_no_regret_and_last_takes_the_last_step() -> None:
    table = nacme.select(TWO_RUNS, ["oracle", "last"], per="run")
    assert table.loc[table.criterion == "oracle", "regret"].tolist() == [0, 0]
    assert table.loc[table.criterion == "last", "step"].tolist() == [90, 50]


def test_ties_go_to_the_earliest_step_and_the_highest_hparams_seed() -> None:
    rows = [
        {"run": f"r{seed}", "hparams_seed": seed, "step": step, "nac_me": 1.0}
        for seed in (0, 2, 1)
        for step in (0, 50, 100)
    ]
    row = nacme.select(checkpoints(rows), "nac_me").iloc[0]
    assert (row.hparams_seed, row.step) == (2, 0)


def test_a_tie_is_counted_and_the_regret_of_drawing_from_it_is_said() -> None:
    accuracies = [0.5, 0.6, 0.7, 0.9]
    rows = [
        {"step": 50 * i, "nac_me": float(i > 0), "val_acc": float(i > 1), "test_acc": accuracies[i]}
        for i in range(4)
    ]
    table = nacme.select(checkpoints(rows), ["nac_me", "val_acc", "last"]).set_index("criterion")
    # nac_me ties at three of four: mean accuracy 0.7333; val_acc at two of four, which is a choice.
    assert table["n_tied"].tolist() == [3, 2, 1]
    assert table["step"].tolist() == [50, 100, 150]
    assert table["regret"].tolist() == pytest.approx([30, 20, 0])
    assert table["regret_over_ties"].tolist() == pytest.approx([100 * (0.9 - 2.2 / 3), 10, 0])
    assert table["no_choice"].tolist() == [True, False, False]


def test_a_tie_counts_among_the_checkpoints_where_the_criterion_is_defined() -> None:
    rows = [{"step": 50 * i, "nac_me": value} for i, value in enumerate([np.nan, np.nan, 0.5, 0.5, 0.1])]
    with pytest.warns(NacmeWarning, match="undefined at 2 checkpoints"):
        row = nacme.select(checkpoints(rows), "nac_me").iloc[0]
    assert (row.n_tied, row.no_choice) == (2, True)
    alone = nacme.select(checkpoints(rows[-1:]), "nac_me").iloc[0]
    assert (alone.n_tied, alone.no_choice) == (1, False)


def test_last_ties_across_runs_and_is_broken_by_the_same_rule() -> None:
    rows = [
        {"run": f"r{seed}", "hparams_seed": seed, "step": step, "test_acc": 0.1 * (seed + 1), "nac_me": 1.0}
        for seed in (0, 2, 1)
        for step in (0, 50, 100)
    ]
    table = nacme.select(checkpoints(rows), ["last", "nac_me"]).set_index("criterion")
    assert table["hparams_seed"].tolist() == [2, 2]
    assert table["n_tied"].tolist() == [3, 9]
    assert table["no_choice"].tolist() == [False, True]
    assert table.loc["last", "regret_over_ties"] == pytest.approx(10)


def test_populations_of_trials_datasets_and_envs_stay_apart() -> None:
    rows = [
        {"run": f"{dataset}{env}{trial}", "dataset": dataset, "test_env": env, "trial_seed": trial, "nac_me": 1.0}
        for dataset in ("A", "B")
        for env in (0, 1)
        for trial in (0, 1)
    ]
    assert len(nacme.select(checkpoints(rows), "nac_me")) == 8


def test_undefined_and_infinite_values_are_never_chosen() -> None:
    df = TWO_RUNS.assign(nac_me=[0.1, np.nan, 0.3, np.inf, 0.2])
    with pytest.warns(NacmeWarning, match="undefined at 2 checkpoints"):
        row = nacme.select(df, "nac_me").iloc[0]
    assert (row.run, row.step) == ("r0", 90)


def test_a_criterion_undefined_throughout_gives_a_null_row_and_says_so() -> None:
    df = TWO_RUNS.assign(nac_me=[0.1, 0.2, 0.3, np.nan, np.nan])
    with pytest.warns(NacmeWarning, match="every checkpoint of 1 of 2 populations .*r1"):
        table = nacme.select(df, "nac_me", per="run").set_index("run")
    nothing = ["step", "value", "test_acc", "regret", "n_tied", "regret_over_ties", "no_choice"]
    assert table.loc["r1", nothing].isna().all()
    assert table.loc["r1", "oracle_acc"] == 0.60
    assert table.loc["r0", "step"] == 90


def test_runs_with_two_test_envs_are_never_selected() -> None:
    rows = TWO_RUNS.to_dict("records")
    rows.append({"run": "pair", "test_envs": "0,1", "n_test_envs": 2, "nac_me": 9.0, "test_acc": 1.0})
    row = nacme.select(checkpoints(rows), "nac_me").iloc[0]
    assert row.run == "r1"
    assert row.oracle_acc == 0.90


def test_what_cannot_be_done_is_one_line_with_a_remedy() -> None:
    with pytest.raises(CriterionError, match=r"some/sweep do not hold criterion 'nac_me'.*nacme score some/sweep"):
        nacme.select(TWO_RUNS.drop(columns="nac_me"), "nac_me")
    with pytest.raises(CriterionError, match="did you mean 'val_acc'"):
        nacme.select(TWO_RUNS, "vall_acc")
    with pytest.raises(CriterionError, match="pairs of test envs"):
        nacme.select(TWO_RUNS, "leave_one_out")
    with pytest.raises(ConfigError, match="per must be"):
        nacme.select(TWO_RUNS, "nac_me", per="trial")  # type: ignore[arg-type]
    with pytest.raises(SweepError, match="no checkpoints"):
        nacme.select(TWO_RUNS.iloc[:0], "nac_me")


def pair(test_env: int, left_out: int, acc: float, **more: Any) -> dict[str, Any]:
    """The row of run {test_env, left_out} that tests on left_out."""
    envs = ",".join(map(str, sorted((test_env, left_out))))
    return {"run": envs, "test_env": left_out, "test_envs": envs, "n_test_envs": 2, "test_acc": acc, **more}


def test_leave_one_out_averages_over_the_envs_left_out() -> None:
    rows = [
        {"step": 0},
        {"step": 50},
        # Step 0: (0.6 + 0.8) / 2 = 0.7. Step 50: (0.9 + 0.3) / 2 = 0.6.
        *(pair(0, 1, acc, step=step) for step, acc in ((0, 0.6), (50, 0.9))),
        *(pair(0, 2, acc, step=step) for step, acc in ((0, 0.8), (50, 0.3))),
    ]
    row = nacme.select(checkpoints(rows), "leave_one_out").iloc[0]
    assert row.step == 0
    assert row.value == pytest.approx(0.7)


def test_leave_one_out_is_undefined_while_a_pair_is_missing() -> None:
    df = checkpoints([{"step": 0}, pair(0, 1, 0.6)])
    with pytest.warns(NacmeWarning, match="leave_one_out.*every checkpoint"):
        assert pd.isna(nacme.select(df, "leave_one_out")["value"][0])


def test_leave_one_out_is_undefined_where_two_runs_share_a_seed() -> None:
    df = checkpoints([{"run": "a"}, {"run": "b"}, pair(0, 1, 0.6), pair(0, 2, 0.6)])
    with pytest.warns(NacmeWarning, match="leave_one_out.*every checkpoint"):
        assert pd.isna(nacme.select(df, "leave_one_out")["value"][0])


def expected_tables(text: str) -> dict[str, list[str]]:
    """Read the row of each per-env table: mean +/- standard error of four envs, and their average."""
    tables, method = {}, None
    for line in text.splitlines():
        if line.startswith("-------- Dataset"):
            method = line.partition("method: ")[2]
        elif line.startswith("-------- Averages"):
            method = None
        elif line.startswith("ERM") and method:
            words = line.split()
            tables[method] = [" ".join(words[i : i + 3]) for i in (1, 4, 7, 10)] + [words[13]]
    return tables


@pytest.mark.data
@pytest.mark.skipif("NACME_DATA" not in os.environ, reason="NACME_DATA is not set")
@pytest.mark.parametrize(
    ("criterion", "method"),
    [
        ("val_acc", "training-domain validation set"),
        ("leave_one_out", "leave-one-domain-out cross-validation"),
        ("domainbed_oracle", "test-domain validation set (oracle)"),
    ],
)
def test_domainbeds_own_sweep_gives_domainbeds_own_table(criterion: str, method: str) -> None:
    sweep = Path(os.environ["NACME_DATA"]) / "domainbed_test_sweep"
    chosen = nacme.select(nacme.load_sweep(sweep), criterion)
    cells, means = [], []
    for _, trials in chosen.groupby("test_env")["test_acc"]:
        means.append(100 * trials.mean())
        cells.append(f"{means[-1]:.1f} +/- {100 * trials.std(ddof=0) / len(trials) ** 0.5:.1f}")
    assert [*cells, f"{np.mean(means):.1f}"] == expected_tables((sweep / "expected_results.txt").read_text())[
        method
    ]
