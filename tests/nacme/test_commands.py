from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nacme.commands import split_names
from nacme.errors import ConfigError
from nacme.study.correlation import CORRELATE_COLUMNS
from nacme.study.selection import SELECT_COLUMNS


def nacme(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nacme.cli", *map(str, args)], capture_output=True, text=True, check=False
    )


def rows(*args: object) -> list[dict[str, Any]]:
    done = nacme(*args, "--format", "json")
    assert done.returncode == 0, done.stderr

    def no_constant(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    result = json.loads(done.stdout, parse_constant=no_constant)
    assert isinstance(result, list)
    return result


def test_select_prints_the_contracts_rows(simulated_sweep: Path) -> None:
    result = rows("select", simulated_sweep)
    assert all(tuple(row) == SELECT_COLUMNS for row in result)
    # 3 test envs x 2 trials x the criteria that the sweep holds.
    assert [row["criterion"] for row in result[::6]] == ["nac_me", "val_acc", "val_loss", "last", "oracle"]
    assert len(result) == 30
    assert all(isinstance(row["step"], int) and row["regret"] >= 0 for row in result)
    assert len(rows("select", simulated_sweep, "--per", "run", "--criterion", "nac_me,last")) == 48


def test_select_says_which_choices_are_none(
    write_sweep: Callable[..., Path], simulated_sweep: Path, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path / "s", nac_me="constant", envs=2, hparams_seeds=1, trial_seeds=1)
    done = nacme("select", sweep, "--criterion", "nac_me", "--format", "json")
    found = json.loads(done.stdout)
    assert [(row["n_tied"], row["no_choice"], row["step"]) for row in found] == [(9, True, 0)] * 2
    assert all(row["regret_over_ties"] < row["regret"] for row in found)
    assert "2 of 2 choices are no choice: more than half of the candidates tie" in done.stderr
    assert "no choice" not in nacme("select", simulated_sweep, "--criterion", "nac_me").stderr


def test_correlate_prints_the_contracts_rows(simulated_sweep: Path) -> None:
    result = rows("correlate", simulated_sweep, "--criterion", "nac_me", "--criterion", "last")
    assert all(tuple(row) == CORRELATE_COLUMNS for row in result)
    assert [(row["test_env"], row["criterion"]) for row in result[:2]] == [(0, "nac_me"), (0, "last")]
    assert result[1]["partial_spearman_step"] is None
    sweep = rows("correlate", simulated_sweep, "--population", "sweep", "--include-step0", "--pool-algorithms")
    assert {row["algorithm"] for row in sweep} == {"all"}
    assert {row["n_checkpoints"] for row in sweep} == {72}


def test_controls_stand_in_correlations_and_never_choose(simulated_sweep: Path, tmp_path: Path) -> None:
    sweep = shutil.copytree(simulated_sweep, tmp_path / "sweep")
    for path in sweep.glob("*/results.jsonl"):
        lines = [{**json.loads(line), "sham_count": 0.5} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = nacme("correlate", sweep, "--format", "json")
    assert "sham_count" in {row["criterion"] for row in json.loads(done.stdout)}
    assert "controls, which no finding about coverage may fall behind: sham_count" in done.stderr
    assert "sham_count" not in {row["criterion"] for row in rows("select", sweep)}
    listed = {row["name"]: row["control"] for row in rows("criteria")}
    assert [name for name, control in listed.items() if control] == ["sham_count", "sham_permuted"]


def test_tables_and_csv_hold_every_value_in_a_pipe(simulated_sweep: Path) -> None:
    table = nacme("select", simulated_sweep, "--criterion", "nac_me", "--wide").stdout
    assert table.splitlines()[0].split() == list(SELECT_COLUMNS)
    assert "…" not in table
    assert len(table.splitlines()) == 2 + 6
    text = nacme("select", simulated_sweep, "--criterion", "nac_me", "--format", "csv").stdout
    assert len(list(csv.DictReader(io.StringIO(text)))) == 6


def test_coverage_is_no_matter_where_it_was_not_asked_for(write_sweep: Any, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", degenerate=True, trial_seeds=1)
    assert "degenerate" not in nacme("select", sweep, "--criterion", "val_acc").stderr
    assert "degenerate" in nacme("select", sweep, "--criterion", "rank_mean(nac_me,val_acc)").stderr
    wrong = nacme("select", sweep, "--criterion", "nac_me,nothing")
    assert len(wrong.stderr.splitlines()) == 1


def test_what_a_reader_has_to_know_goes_to_standard_error(write_sweep: Any, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", degenerate=True, nac_me="null", trial_seeds=1)
    (sweep / "bare").mkdir()
    next(sweep.glob("*/done")).unlink()
    done = nacme("select", sweep, "--criterion", "nac_me", "--format", "json")
    assert done.returncode == 0
    assert all(row["value"] is None for row in json.loads(done.stdout))
    assert "degenerate at 100% of the checkpoints" in done.stderr
    assert "1 directory without results.jsonl: bare" in done.stderr
    assert "1 of 12 runs are not finished" in done.stderr
    assert "undefined" in done.stderr
    assert "hardly a bin is full" not in done.stderr
    correlated = nacme("correlate", sweep, "--criterion", "nac_me")
    assert "no checkpoint" in correlated.stderr
    assert "step 0 is left out" in correlated.stderr


def test_coverage_that_only_counts_samples_is_said(write_sweep: Any, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", full_bins=0.0, trial_seeds=1)
    said = nacme("select", sweep, "--criterion", "nac_me").stderr
    assert "at 100% of the checkpoints, where hardly a bin is full" in said


@pytest.mark.parametrize(
    "args",
    [
        ["select", "nowhere"],
        ["select", "SWEEP", "--criterion", "nac"],
        ["select", "SWEEP", "--criterion", "a,,b"],
        ["correlate", "SWEEP", "--criterion", "nac_me"],
    ],
)
def test_a_mistake_is_one_line_and_exit_1(write_sweep: Any, tmp_path: Path, args: list[str]) -> None:
    sweep = write_sweep(tmp_path / "sweep", criteria=False, trial_seeds=1)
    done = nacme(*(sweep if a == "SWEEP" else a for a in args))
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_the_registry_is_listed() -> None:
    listed = {row["name"]: row for row in rows("criteria")}
    assert listed["val_loss"]["direction"] == "lower"
    assert listed["oracle"]["sees"] == "oracle"
    assert all(row["source"] and row["cost"] and row["description"] for row in listed.values())
    assert "nac_me" in nacme("criteria").stdout


def test_help_loads_no_torch_pandas_or_scipy() -> None:
    code = (
        "import sys; sys.argv = ['nacme', '--help']\n"
        "from nacme.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'pandas', 'scipy', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert time.perf_counter() - start < 5
    assert "correlate" in done.stdout


def test_names_are_split_in_order_without_repetition() -> None:
    assert split_names(["b,a", "a", " c "]) == ["b", "a", "c"]
    assert split_names(None) == []
    with pytest.raises(ConfigError, match="empty"):
        split_names(["a,"])
