from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nacme
from nacme.criteria.registry import (
    all_criteria,
    criterion,
    criterion_values,
    default_criteria,
    get_criterion,
    oriented_values,
    recorded_names,
    register,
)
from nacme.errors import CriterionError

FOUR = pd.DataFrame(
    {
        "run": ["a", "a", "b", "b"],
        "step": [0, 50, 0, 50],
        "nac_me": [0.1, 0.4, 0.2, 0.3],
        "val_acc": [0.5, 0.6, 0.9, 0.7],
        "val_loss": [1.0, 0.2, 0.4, 0.8],
        "test_acc": [0.1, 0.2, 0.3, 0.4],
    }
)


def test_values_keep_a_criterions_own_direction_and_oriented_ones_do_not() -> None:
    assert criterion_values(FOUR, "val_loss").tolist() == [1.0, 0.2, 0.4, 0.8]
    assert oriented_values(FOUR, "val_loss").tolist() == [-1.0, -0.2, -0.4, -0.8]
    assert oriented_values(FOUR, "last").tolist() == [0, 50, 0, 50]


def test_what_is_not_finite_is_undefined() -> None:
    df = FOUR.assign(nac_me=[np.inf, -np.inf, np.nan, 0.3])
    assert criterion_values(df, "nac_me").isna().tolist() == [True, True, True, False]


def test_rank_mean_within_the_whole_frame_by_hand() -> None:
    # Ranks by nac_me: 1 4 2 3. By val_loss, lower first: 1 4 3 2. Mean over 4: 1/4, 1, 2.5/4, 2.5/4.
    assert criterion_values(FOUR, "rank_mean(nac_me, val_loss)").tolist() == [0.25, 1.0, 0.625, 0.625]


def test_rank_mean_within_populations_by_hand() -> None:
    runs = pd.Series([0.0, 0.0, 1.0, 1.0])
    # Run b: nac_me ranks 1 2, val_acc ranks 2 1.
    assert criterion_values(FOUR, "rank_mean(nac_me, val_acc)", runs).tolist() == [0.5, 1.0, 0.75, 0.75]


def a_sweep(seed: int) -> pd.DataFrame:
    """Checkpoints of several runs, candidates and test envs in any order, some values undefined."""
    rng = np.random.default_rng(seed)
    rows = [
        {"run": run, "candidate": kind, "test_env": env, "step": 10 * step}
        for run in "abc"
        for kind in ("raw", "sma")
        for env in (0, 1)
        for step in range(rng.integers(1, 7))
    ]
    df = pd.DataFrame(rows).sample(frac=1, random_state=seed)
    values = rng.normal(size=len(df))
    return df.assign(val_loss=np.where(rng.random(len(df)) < 0.2, np.nan, values))


@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 5]))
def test_running_mean_is_the_mean_over_neighbours_in_the_same_run_alone(seed: int, window: int) -> None:
    df = a_sweep(seed)
    found = criterion_values(df, f"running_mean(val_loss, {window})")
    for _, run in df.groupby(["run", "candidate", "test_env"]):
        ordered = run.sort_values("step")["val_loss"]
        for place, (label, value) in enumerate(ordered.items()):
            near = ordered.iloc[max(0, place - window // 2) : place + window // 2 + 1]
            expected = np.nan if np.isnan(value) else near.mean()
            assert found[label] == pytest.approx(expected, nan_ok=True)


@given(st.integers(0, 2**32 - 1))
def test_running_mean_does_not_depend_on_the_order_or_the_labels_of_rows(seed: int) -> None:
    df = a_sweep(seed)
    found = criterion_values(df, "running_mean(val_loss, 3)")
    again = criterion_values(df.sort_index(), "running_mean(val_loss, 3)")
    pd.testing.assert_series_equal(again, found.sort_index(), check_names=False, rtol=1e-12)
    same = criterion_values(df.set_axis([0] * len(df)), "running_mean(val_loss, 3)")
    assert np.allclose(same, found, equal_nan=True)


def test_running_mean_keeps_the_direction_and_combines_further() -> None:
    smooth = get_criterion("running_mean(val_loss, 3)")
    assert not smooth.higher_is_better
    assert smooth.sees == "ind"
    assert get_criterion("running_mean(oracle, 3)").sees == "oracle"
    assert oriented_values(FOUR, "running_mean(val_loss, 3)").tolist() == pytest.approx([-0.6, -0.6, -0.6, -0.6])
    assert criterion_values(FOUR, "running_mean(rank_mean(nac_me, val_acc), 3)").tolist() == [0.5, 0.5, 0.75, 0.75]
    assert criterion_values(FOUR, "rank_mean(running_mean(nac_me, 3), last)").notna().all()


def test_select_correlate_and_report_take_a_running_mean(write_sweep: Any, tmp_path: Path) -> None:
    df = nacme.load_sweep(write_sweep(tmp_path / "sweep"))
    name = "running_mean(val_acc, 3)"
    picks = nacme.select(df, ["val_acc", name])
    assert set(picks["criterion"]) == {"val_acc", name}
    assert picks[picks["criterion"] == name]["value"].notna().all()
    assert nacme.rank_correlation(df, ["val_acc", name], n_boot=10)["kendall_tau"].notna().all()


def test_rank_mean_ranks_only_where_every_part_is_defined_and_the_row_has_a_population() -> None:
    df = FOUR.assign(nac_me=[0.1, np.nan, 0.2, 0.3])
    populations = pd.Series([np.nan, 0.0, 0.0, 0.0])
    values = criterion_values(df, "rank_mean(nac_me, last)", populations)
    # Rows 2 and 3 are left: each better in both.
    assert values.isna().tolist() == [True, True, False, False]
    assert values[2:].tolist() == [0.5, 1.0]


def test_a_combination_may_be_selected_and_correlated(simulated_sweep: Path) -> None:
    df = nacme.load_sweep(simulated_sweep)
    names = ["nac_me", "rank_mean(nac_me, val_acc)", "rank_mean(nac_me, rank_mean(val_acc, val_loss))"]
    assert set(nacme.select(df, names)["criterion"]) == set(names)
    table = nacme.rank_correlation(df, names)
    assert np.isfinite(table["kendall_tau"]).all()
    assert get_criterion(names[1]).higher_is_better
    # Two copies of one order rank like that order.
    doubled = nacme.rank_correlation(df.assign(val_acc=3 * df["nac_me"]), names[:2])
    taus = doubled.pivot(index="test_env", columns="criterion", values="kendall_tau")
    assert taus[names[0]].tolist() == pytest.approx(taus[names[1]].tolist())


def test_a_combination_sees_what_its_parts_see() -> None:
    assert get_criterion("rank_mean(nac_me, val_acc)").sees == "ind"
    assert get_criterion("rank_mean(nac_me, oracle)").sees == "oracle"


def test_defaults_are_what_the_sweep_holds() -> None:
    assert default_criteria(FOUR, oracle=True) == ["nac_me", "val_acc", "val_loss", "last", "oracle"]
    assert default_criteria(FOUR.drop(columns="nac_me").assign(val_loss=np.nan)) == ["val_acc", "last"]


def test_a_setting_of_nac_me_is_a_criterion_of_its_direction() -> None:
    assert get_criterion("nac_me_a100_m50_o500").higher_is_better
    with pytest.raises(CriterionError, match="do not hold"):
        criterion_values(FOUR, "nac_me_a100_m50_o500")


def test_a_wrong_name_is_answered_with_near_ones() -> None:
    with pytest.raises(CriterionError, match="did you mean 'nac_me'"):
        get_criterion("nacme")
    with pytest.raises(CriterionError, match="did you mean 'val_acc'"):
        get_criterion("rank_mean(nac_me, valacc)")


def test_names_are_taken_once_and_are_plain() -> None:
    with pytest.raises(CriterionError, match="registered already"):
        register(all_criteria()["nac_me"])
    with pytest.raises(CriterionError, match="plain identifier"):
        criterion(name="a-b", higher_is_better=True, sees="ind", needs=["records"], cost="", source="")(len)


def test_what_follows_from_the_records_is_not_looked_for_in_them() -> None:
    assert {"nac_me", "val_loss"} <= set(recorded_names())
    assert not {"val_acc", "last", "oracle", "leave_one_out"} & set(recorded_names())


USER_MODULE = """
from nacme.criteria.registry import criterion

@criterion(higher_is_better=True, sees="ind", needs=["records"], cost="none", source="a test")
def early(df):
    "The earliest checkpoint."
    return -df["step"]

@criterion(higher_is_better=False, sees="ind", needs=["logits"], cost="one pass", source="a test")
def spread(collected):
    "Recorded while training."
    return 0.0
"""


def nacme_rows(*args: object, **environment: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "nacme.cli", *map(str, args), "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment or None,
    )
    assert done.returncode == 0, done.stderr
    result: list[dict[str, object]] = json.loads(done.stdout)
    return result


def test_a_users_criteria_come_from_a_file(tmp_path: Path, simulated_sweep: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text(USER_MODULE)
    rows = nacme_rows("criteria", "--criteria-module", module)
    assert {row["name"]: row["direction"] for row in rows}["spread"] == "lower"
    rows = nacme_rows("select", simulated_sweep, "--criteria-module", module, "--criterion", "early")
    assert {row["step"] for row in rows} == {0}


def test_a_users_recorded_criterion_has_a_column(tmp_path: Path, write_sweep) -> None:
    module = tmp_path / "mine.py"
    module.write_text(USER_MODULE)
    sweep = write_sweep(tmp_path / "sweep", trial_seeds=1, hparams_seeds=1)
    for results in sweep.glob("*/results.jsonl"):
        records = [json.loads(line) for line in results.read_text().splitlines()]
        results.write_text("".join(json.dumps({**r, "spread": r["step"]}) + "\n" for r in records))
    rows = nacme_rows("correlate", sweep, "--criteria-module", module, "--criterion", "spread,last")
    by = {(row["test_env"], row["criterion"]): row["kendall_tau"] for row in rows}
    assert all(by[env, "spread"] == pytest.approx(-by[env, "last"]) for env in range(3))


def test_an_installed_plug_in_is_found(tmp_path: Path) -> None:
    (tmp_path / "their_criteria.py").write_text(USER_MODULE)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nacme.criteria]\ntheirs = their_criteria\nbroken = not_there\n")
    done = subprocess.run(
        [sys.executable, "-m", "nacme.cli", "criteria", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert "early" in {row["name"] for row in json.loads(done.stdout)}
    assert "plug-in not_there cannot be loaded" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1/0", "division by zero"),
        ("def", "invalid syntax"),
        (None, "No such file"),
        ("import nacme.nothing", "No mod"),
    ],
)
def test_a_module_that_cannot_be_loaded_is_one_line(tmp_path: Path, text: str | None, said: str) -> None:
    module = tmp_path / "mine.py"
    if text is not None:
        module.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "nacme.cli", "criteria", "--criteria-module", str(module)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
