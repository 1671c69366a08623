from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import nacme
from nacme.compact import compact_choices, compact_correlations, lines_of
from nacme.errors import NacmeWarning
from nacme.output import merged, said_after


def run(sweep: Path, *args: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nacme.cli", args[0], str(sweep), *args[1:]],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": str(columns)},
    )


@pytest.mark.parametrize("command", ["select", "correlate"])
def test_eighty_columns_hold_whole_words(command: str, write_sweep: Callable[..., Path], tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", algorithms=("ERM", "GroupDRO"), envs=2, checkpoints=5)
    done = run(sweep, command)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    # a line for each row, and every name whole
    df = nacme.load_sweep(sweep)
    names = ["nac_me", "val_acc", "val_loss", "last", *(["oracle"] if command == "select" else [])]
    table = nacme.select(df, names) if command == "select" else nacme.rank_correlation(df, names)
    body = lines[next(i for i, line in enumerate(lines) if "─" in line) + 1 :]
    assert len(body) == len(table)
    for line, row in zip(body, table.to_dict("records")):
        assert {row["algorithm"], row["criterion"]} <= set(line.split())
    assert "dataset RotatedDigits" in lines[0]


def test_an_estimate_and_its_interval_stand_in_one_cell(simulated_sweep: Path) -> None:
    table = nacme.rank_correlation(nacme.load_sweep(simulated_sweep), "nac_me")
    found = compact_correlations(table, 80)
    for row, cell in zip(table.itertuples(), [row[found.columns.index("kendall tau")] for row in found.rows]):
        assert cell == f"{row.kendall_tau:.2f} [{row.kendall_low:.2f}, {row.kendall_high:.2f}]"
    few = table.assign(kendall_low=float("nan"), kendall_high=float("nan"))
    assert re.fullmatch(r"\d\.\d\d", compact_correlations(few, 80).rows[0][found.columns.index("kendall tau")])


def test_accuracy_is_percent_beside_regret_in_points(simulated_sweep: Path) -> None:
    table = nacme.select(nacme.load_sweep(simulated_sweep), "val_acc")
    found = compact_choices(table, 200)
    at = found.columns.index("test %")
    assert found.columns[at + 1] == "regret"
    for row, texts in zip(table.itertuples(), found.rows):
        assert texts[at : at + 2] == [f"{100 * row.test_acc:.1f}", f"{row.regret:.1f}"]
    assert found.columns[-1] == "run"
    assert found.hidden == []


def test_what_has_no_room_is_named(simulated_sweep: Path) -> None:
    table = nacme.select(nacme.load_sweep(simulated_sweep), ["nac_me", "val_acc"])
    narrow = compact_choices(table, 50)
    assert narrow.hidden[:2] == ["hparams", "value"]
    lines = lines_of(narrow, 50)
    assert "--wide adds hparams, value" in " ".join(lines[:3])


def test_a_choice_of_nothing_is_a_dash(simulated_sweep: Path) -> None:
    table = nacme.select(nacme.load_sweep(simulated_sweep), ["val_acc", "last"])
    table.loc[0, ["run", "step", "value", "test_acc", "regret", "n_tied"]] = [None, pd.NA, None, None, None, pd.NA]
    row = dict(zip((found := compact_choices(table, 200)).columns, found.rows[0]))
    assert [row[name] for name in ("run", "step", "value", "test %", "regret", "tied")] == ["-"] * 6


def test_names_like_hashes_are_cut_where_that_tells_them_apart(simulated_sweep: Path) -> None:
    table = nacme.select(nacme.load_sweep(simulated_sweep), "val_acc")
    hashes = table.assign(run=[f"{i}" * 32 for i in range(len(table))])
    assert [row[-1] for row in compact_choices(hashes, 200).rows] == [f"{i}" * 8 + "…" for i in range(len(table))]
    alike = table.assign(run=[f"{'a' * 31}{i}" for i in range(len(table))])
    assert [row[-1] for row in compact_choices(alike, 200).rows] == list(alike["run"])


def test_near_equal_texts_become_one() -> None:
    texts = [f"c{i}: undefined at {i} of 20 checkpoints [Toy, env {i}]" for i in range(1, 25)]
    (one,) = merged(texts)
    assert one.startswith("c1, c2, c3")
    assert "undefined at 1 of 20 checkpoints" in one
    assert one.endswith("(and 23 more like it; --wide says each)")
    assert merged(["a: x", "b: x", "a: x"]) == ["a, b: x"]
    files = ["/s/a/results.jsonl, line 3: corrupt", "/s/b/results.jsonl, line 3: corrupt"]
    assert merged(files) == files


def test_notes_follow_the_result_and_no_note_stands_before_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with said_after() as note:
        note("step 0 is left out")
        warnings.warn("a: undefined", NacmeWarning, stacklevel=1)
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == "nacme: warning: a: undefined\nnacme: note: step 0 is left out\n"

    def fail() -> None:
        with said_after() as note:
            note("step 0 is left out")
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fail()
    assert capsys.readouterr().err == ""


def test_an_output_without_lines_takes_a_table(monkeypatch: pytest.MonkeyPatch, simulated_sweep: Path) -> None:
    from nacme.output import write_lines

    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    table = nacme.select(nacme.load_sweep(simulated_sweep), "val_acc")
    write_lines(lines_of(compact_choices(table, 80), 80))
    out.flush()
    assert b"---" in out.buffer.getvalue()  # type: ignore[attr-defined]
