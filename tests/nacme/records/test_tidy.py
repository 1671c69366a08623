from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import nacme
from nacme.errors import CriterionError, SweepError


def write_table(df: pd.DataFrame, path: Path) -> Path:
    """Write a frame as its user would, with and without pandas's own index."""
    if path.suffix == ".csv":
        df.to_csv(path)
    elif path.suffix == ".parquet":
        df.to_parquet(path)
    else:
        df.to_json(path, orient="records", lines=True, double_precision=15)
    return path


def small(**columns: Any) -> pd.DataFrame:
    """Three checkpoints of a run, with what is required and nothing else."""
    return pd.DataFrame(
        {"run": ["a"] * 3, "step": [0, 10, 20], "test_acc": [0.2, 0.6, 0.5], "nac_me": [0.1, 0.3, 0.2]} | columns
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_sweep_goes_through_a_table_and_back(
    suffix: str, write_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    df = nacme.load_sweep(write_sweep(tmp_path / "sweep", trial_seeds=1, algorithms=("ERM", "CORAL")))
    again = nacme.load_sweep(write_table(df, tmp_path / f"table{suffix}"))
    pd.testing.assert_frame_equal(again, df, check_exact=suffix != ".jsonl", rtol=1e-13)
    names = ["nac_me", "val_loss", "last", "rank_mean(nac_me, val_acc)"]
    for result in (
        lambda d: nacme.select(d, names),
        lambda d: nacme.rank_correlation(d, names, include_step0=True, n_boot=50),
    ):
        pd.testing.assert_frame_equal(result(again), result(df), rtol=1e-9)


@pytest.mark.data
@pytest.mark.skipif("NACME_DATA" not in os.environ, reason="NACME_DATA is not set")
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_domainbeds_own_sweep_goes_through_a_table_and_back(suffix: str, tmp_path: Path) -> None:
    df = nacme.load_sweep(Path(os.environ["NACME_DATA"]) / "domainbed_test_sweep")
    again = nacme.load_sweep(write_table(df, tmp_path / f"table{suffix}"))
    names = ["val_acc", "leave_one_out", "domainbed_oracle"]
    pd.testing.assert_frame_equal(nacme.select(again, names), nacme.select(df, names), rtol=1e-12)


def test_four_columns_are_enough(tmp_path: Path) -> None:
    small().to_csv(tmp_path / "mine.csv", index=False)
    df = nacme.load_sweep(tmp_path / "mine.csv")
    row = df.iloc[0]
    assert (row.dataset, row.algorithm, row.test_env, row.test_envs) == ("mine", "unknown", 0, "0")
    assert (row.n_test_envs, row.n_envs, row.trial_seed, row.hparams_seed) == (1, 2, 0, 0)
    assert (row.candidate, row.done, row.checkpoint) == ("raw", True, None)
    assert df[["val_acc", "test_out_acc"]].isna().all(axis=None)
    chosen = nacme.select(df)
    assert chosen[["run", "step", "regret"]].to_numpy().tolist() == [["a", 10, 0.0]]


def test_rows_of_a_run_tell_its_test_envs(tmp_path: Path) -> None:
    table = pd.concat([small(test_env=1), small(test_env=3)])
    table.to_csv(tmp_path / "t.csv", index=False)
    df = nacme.load_sweep(tmp_path / "t.csv")
    assert set(df["test_envs"]) == {"1,3"}
    assert set(df["n_test_envs"]) == {2}
    assert set(df["n_envs"]) == {4}
    # the mean over both, one observation a run
    assert nacme.select(df)["test_env"].tolist() == ["1,3"]


def test_names_stay_texts_and_rows_are_put_in_order(tmp_path: Path) -> None:
    small(run="007", dataset="NA").iloc[::-1].to_csv(tmp_path / "t.csv", index=False)
    df = nacme.load_sweep(tmp_path / "t.csv")
    assert set(df["run"]) == {"007"}
    assert set(df["dataset"]) == {"NA"}
    assert df["step"].tolist() == [0, 10, 20]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"step": [0, 1.5, 2]}, "column 'step' holds 1.5 in row 2; it must be a whole number from 0"),
        ({"step": [0, None, 2]}, "column 'step' holds nothing in row 2"),
        (
            {"test_acc": [50, 60, 70]},
            "column 'test_acc' holds 50 in row 1; it must be an accuracy between 0 and 1",
        ),
        ({"test_acc": ["x", 0.6, 0.7]}, "column 'test_acc' holds 'x' in row 1"),
        ({"nac_me": [0.1, "high", 0.2]}, "column 'nac_me' holds 'high' in row 2; it must be a number"),
        ({"test_env": ["art", "art", "art"]}, "column 'test_env' holds 'art' in row 1; it must be a whole number"),
        ({"done": ["yes"] * 3}, "column 'done' holds 'yes' in row 1; it must be true or false"),
        ({"run": ["a", None, "a"]}, "column 'run' holds nothing in row 2; it must be a text"),
        ({"step": [0, 10, 10]}, "run 'a', step 10, test env 0 has two rows"),
        ({"dataset": ["A", "B", "B"]}, "run 'a' has several values of dataset (A, B)"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_wrong_cell_is_named(columns: dict[str, Any], said: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    table = small(**columns)
    if suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    with pytest.raises(SweepError) as caught:
        nacme.load_sweep(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    # what a CSV file holds as text, JSON may hold as a number
    assert said.replace("'", "").replace(".0 ", " ") in text.replace("'", "").replace(".0 ", " ")


@pytest.mark.parametrize("name", ["run", "step", "test_acc"])
def test_a_missing_column_is_named(name: str, tmp_path: Path) -> None:
    small().drop(columns=name).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(SweepError, match=f"has no column '{name}'; required are run, step, test_acc and one"):
        nacme.load_sweep(tmp_path / "t.csv")


def test_a_table_without_a_criterion_is_refused(tmp_path: Path) -> None:
    small().drop(columns="nac_me").to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(SweepError, match="has no criterion: beside run, step, test_acc give a column such as"):
        nacme.load_sweep(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"", "holds no rows"),
        ("t.csv", b"run;step;test_acc;nac_me\na;0;0.5;0.1\n", "has no column 'run'"),
        ("t.csv", b"run,step,test_acc,nac_me\na,0,0.5,0.1,9\n", "is no table with commas"),
        ("t.csv", b"run,step,test_acc,nac_me,nac_me\na,0,0.5,0.1,9\n", "has two columns 'nac_me'"),
        ("t.csv", b"\xff\xfer\0u\0n\0", "is no table with commas"),
        ("t.jsonl", b'{"run": "a"\n', "line 1: not a JSON object"),
        ("t.jsonl", b'{"step": 0, "args": {}}\n', "is a run's own record, not a table; give the run's directory"),
        ("t.parquet", b"PAR1", "is no parquet file that can be read"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SweepError) as caught:
        nacme.load_sweep(tmp_path / name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"none\.csv cannot be read: No such file"):
        nacme.load_sweep(tmp_path / "none.csv")


def test_a_column_of_unknown_direction_is_kept_and_not_ranked_by(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    small(sureness=[1.0, 2.0, 3.0], remark=["x", "y", "z"]).to_csv(path, index=False)
    df = nacme.load_sweep(path)
    assert df["sureness"].tolist() == [1, 2, 3]
    assert df.attrs["exclusions"] == ["columns that hold no numbers: remark"]
    for ask in (nacme.select, nacme.rank_correlation):
        with pytest.raises(
            CriterionError, match=r"the direction of column 'sureness' in .* is unknown; register it"
        ):
            ask(df, "sureness")
    with pytest.raises(CriterionError, match=r"t\.csv has no column 'val_loss'"):
        nacme.select(df, "val_loss")


def test_a_registered_direction_ranks_by_a_column_on_the_command_line(tmp_path: Path) -> None:
    small(sureness=[3.0, 2.0, 1.0]).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "mine.py").write_text(
        "from nacme.criteria import Criterion, register\n"
        "register(Criterion('sureness', False, 'ind', ('records',), 'none', 'mine', 'How sure it is.'))\n"
    )
    command = [sys.executable, "-m", "nacme.cli", "select", "t.csv", "--criterion", "sureness", "--format", "json"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    command += ["--criteria_module", "mine.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in json.loads(done.stdout)] == [20]


def test_a_report_is_made_of_a_table(tmp_path: Path, write_sweep: Callable[..., Path]) -> None:
    df = nacme.load_sweep(write_sweep(tmp_path / "sweep", trial_seeds=1, envs=1, hparams_seeds=2, checkpoints=5))
    path = write_table(df, tmp_path / "t.parquet")
    command = [sys.executable, "-m", "nacme.cli", "report", str(path), "--out", str(tmp_path / "r.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RotatedDigits" in (tmp_path / "r.html").read_text()
