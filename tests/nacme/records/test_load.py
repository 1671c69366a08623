from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import nacme
from nacme.errors import NacmeWarning, SweepError
from nacme.records import cache as sweep_cache
from nacme.records import load as records
from nacme.records.load import degenerate_shares


def record(step: int, test_envs: list[int] = [0], **more: Any) -> dict[str, Any]:  # noqa: B006
    """Env ``i`` has in-accuracy ``0.1 * (i + 1)`` and out-accuracy 0.05 more."""
    accuracies = {f"env{i}_in_acc": 0.1 * (i + 1) for i in range(3)}
    accuracies |= {f"env{i}_out_acc": 0.1 * (i + 1) + 0.05 for i in range(3)}
    args = {
        "dataset": "Toy",
        "algorithm": "ERM",
        "test_envs": test_envs,
        "hparams_seed": 4,
        "trial_seed": 1,
        "seed": 77,
        "steps": 100,
    }
    return {"step": step, "args": args, "hparams": {}, **accuracies, **more}


def write_run(directory: Path, records: list[dict[str, Any]], name: str = "results.jsonl") -> Path:
    """Write records; a run has its own seed, by its name, for runs of equal args and numbers are copies."""
    seed = 77 + ord(directory.name[0]) - ord("a")
    own = [{**r, "args": {**r["args"], "seed": seed}} if "args" in r else r for r in records]
    return write_lines(directory, own, name)


def write_lines(directory: Path, records: list[dict[str, Any]], name: str = "results.jsonl") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text("".join(json.dumps(r) + "\n" for r in records))
    return directory


def test_a_row_holds_what_the_record_says(tmp_path: Path) -> None:
    args = record(0)["args"] | {"steps": 51}
    write_run(tmp_path / "a", [record(0, args=args), record(50, args=args, nac_me=0.25, val_loss=None)])
    (tmp_path / "a" / "done").write_text("done")
    (tmp_path / "a" / "model_step0.pkl").touch()
    (tmp_path / "a" / "model.pkl").touch()
    df = nacme.load_sweep(tmp_path)
    assert df["step"].tolist() == [0, 50]
    row = df.iloc[1]
    assert (row.run, row.dataset, row.algorithm, row.test_env, row.test_envs) == ("a", "Toy", "ERM", 0, "0")
    assert (row.trial_seed, row.hparams_seed, row.seed, row.n_test_envs, row.n_envs) == (1, 4, 77, 1, 3)
    assert row.test_acc == 0.1
    assert row.test_out_acc == pytest.approx(0.15)
    assert row.val_acc == pytest.approx((0.25 + 0.35) / 2)
    assert row.val_acc_worst == 0.25
    assert row.done
    assert row.nac_me == 0.25
    assert math.isnan(row.val_loss)
    assert math.isnan(df["nac_me"][0])
    # model.pkl is the last step's model; every path can be opened.
    assert [os.path.basename(p) for p in df["checkpoint"]] == ["model_step0.pkl", "model.pkl"]
    assert all(os.path.exists(p) for p in df["checkpoint"])
    assert df.attrs["exclusions"] == []


def test_no_saved_model_is_none_and_an_unrecorded_criterion_has_no_column(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(0)])
    df = nacme.load_sweep(tmp_path)
    assert df["checkpoint"][0] is None
    assert not df["done"][0]
    assert not {"nac_me", "val_loss", "occupied_bins", "degenerate"} & set(df.columns)


def test_a_run_with_two_test_envs_has_a_row_for_each(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(0, test_envs=[2, 0])])
    df = nacme.load_sweep(tmp_path)
    assert df["test_env"].tolist() == [0, 2]
    assert df["test_envs"].tolist() == ["0,2", "0,2"]
    assert df["n_test_envs"].tolist() == [2, 2]
    assert df["test_acc"].tolist() == pytest.approx([0.1, 0.3])
    assert df["val_acc"].tolist() == pytest.approx([0.25, 0.25])


def test_a_single_run_directory_is_a_sweep_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "only", [record(0), record(50)])
    assert nacme.load_sweep(tmp_path / "only")["run"].unique().tolist() == ["only"]
    monkeypatch.chdir(tmp_path / "only")
    assert nacme.load_sweep(".")["run"].unique().tolist() == ["only"]


def test_nac_jsonl_is_joined_by_step_and_results_win(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [record(0), record(50, nac_me=0.5)])
    added = [{"step": 50, "nac_me": 0.9, "val_loss": 1.5}, {"step": 0, "nac_me": 0.1, "nac": {"occupied_bins": 3}}]
    write_run(run, added, name="nac.jsonl")
    df = nacme.load_sweep(tmp_path)
    assert df["nac_me"].tolist() == [0.1, 0.5]
    assert df["val_loss"].tolist()[1] == 1.5
    assert df["occupied_bins"].tolist()[0] == 3


def test_a_line_of_nac_jsonl_for_an_unknown_step_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [record(0)])
    write_run(run, [{"step": 7, "nac_me": 0.9}], name="nac.jsonl")
    df = nacme.load_sweep(tmp_path)
    assert len(df) == 1
    assert "nac.jsonl" in df.attrs["exclusions"][0]


def test_settings_of_the_grid_become_columns_and_stock_keys_do_not(tmp_path: Path) -> None:
    nac = {"occupied_bins": 2.5, "degenerate": True, "grid": {"nac_me_a1": {"alpha": 1}}}
    write_run(tmp_path / "a", [record(0, loss=1.0, mem_gb=2.0, nac_me=0.1, nac_me_a1=0.2, nac=nac), record(50)])
    df = nacme.load_sweep(tmp_path)
    assert df["nac_me_a1"][0] == 0.2
    assert df["occupied_bins"][0] == 2.5
    assert df["degenerate"].tolist() == [True, pd.NA]
    assert not {"loss", "mem_gb"} & set(df.columns)


@pytest.mark.filterwarnings("error")
def test_hundreds_of_settings_are_a_table_to_work_with(tmp_path: Path) -> None:
    """pandas warns of a table put together column by column whenever it is used."""
    settings = {f"nac_me_a{alpha}p0_m50_o500": alpha / 300 for alpha in range(1, 251)}
    nac = {"alpha": 0.1, "grid": {key: {} for key in settings}}
    write_run(tmp_path / "a", [record(100 * step, nac=nac, nac_me=0.5, **settings) for step in range(3)])
    df = nacme.load_sweep(tmp_path)
    assert len(df.columns) > 250
    assert nacme.select(df, ["nac_me_a250p0_m50_o500", "rank_mean(nac_me, val_acc)"])["step"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        ('{"step": 100, "args": {"dat', "truncated"),
        ('{"step": 100, "args": {"dat\n', "corrupt"),
        ("7\n", "corrupt"),
    ],
)
def test_a_broken_last_line_is_named_and_the_rest_kept(tmp_path: Path, tail: str, said: str) -> None:
    run = write_run(tmp_path / "a", [record(0), record(50)])
    with open(run / "results.jsonl", "a") as file:
        file.write(tail)
    with pytest.warns(NacmeWarning, match=f"results.jsonl, line 3: {said}"):
        df = nacme.load_sweep(tmp_path)
    assert df["step"].tolist() == [0, 50]
    assert "line 3" in df.attrs["exclusions"][0]


def test_a_broken_line_in_the_middle_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [record(0)])
    with open(run / "results.jsonl", "a") as file:
        file.write('{"step": 50, \n' + json.dumps(record(100)) + "\n")
    with pytest.warns(NacmeWarning, match="line 2: corrupt"):
        df = nacme.load_sweep(tmp_path)
    assert df["step"].tolist() == [0, 100]


def test_a_record_without_a_key_is_named(tmp_path: Path) -> None:
    broken = record(50)
    del broken["env0_in_acc"]
    write_run(tmp_path / "a", [record(0), broken])
    with pytest.warns(NacmeWarning, match=r"line 2: .*'env0_in_acc' is missing"):
        df = nacme.load_sweep(tmp_path)
    assert df["step"].tolist() == [0]


def test_of_a_step_recorded_twice_the_last_counts(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(0), record(50, nac_me=0.1), record(0), record(50, nac_me=0.9)])
    write_run(tmp_path / "b", [record(0), record(0)])
    with pytest.warns(NacmeWarning, match="2 runs recorded a step more than once") as caught:
        df = nacme.load_sweep(tmp_path)
    assert len(caught) == 1
    assert df.loc[df.run == "a", "step"].tolist() == [0, 50]
    assert df.loc[(df.run == "a") & (df.step == 50), "nac_me"].item() == 0.9


def test_coverage_measured_with_two_settings_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(0, nac_me=0.1, nac={"alpha": 0.1, "bins": 50})])
    write_run(tmp_path / "b", [record(0, nac_me=0.1, nac={"alpha": 100, "bins": 50})])
    with pytest.warns(NacmeWarning, match=r"2 settings.*alpha"):
        nacme.load_sweep(tmp_path)


def test_coverage_measured_at_two_layers_is_said(tmp_path: Path) -> None:
    here, there = {"layers": ["featurizer.bn3"]}, {"layers": ["classifier:input"]}
    write_run(tmp_path / "a", [record(0, nac_me=0.1, nac=here)])
    write_run(tmp_path / "b", [record(0, nac_me=0.1, nac=there)])
    with pytest.warns(NacmeWarning, match=r"different layers.* at classifier:input and at featurizer.bn3"):
        nacme.load_sweep(tmp_path)


def test_controls_are_read_beside_the_records(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [record(0, nac_me=0.1), record(50, nac_me=0.2)])
    (run / "controls.jsonl").write_text('{"step": 0, "sham_permuted": 0.3}\n{"step": 50, "sham_permuted": null}\n')
    df = nacme.load_sweep(tmp_path)
    assert df["sham_permuted"].tolist() == pytest.approx([0.3, math.nan], nan_ok=True)
    # what a later measurement says of another nac_me gives way
    (run / "nac.jsonl").write_text('{"step": 0, "sham_permuted": 0.9, "nac_me": 0.8}\n')
    df = nacme.load_sweep(tmp_path)
    assert df["sham_permuted"].tolist() == pytest.approx([0.3, math.nan], nan_ok=True)


def test_nan_and_infinity_tokens_are_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [record(0, loss=math.nan, val_loss=math.inf)])
    assert "NaN" in (run / "results.jsonl").read_text()
    assert nacme.load_sweep(tmp_path)["val_loss"][0] == math.inf


def test_directories_without_records_are_listed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(0)])
    write_run(tmp_path / "empty", [])
    (tmp_path / "bare").mkdir()
    (tmp_path / "notes.txt").touch()
    df = nacme.load_sweep(tmp_path)
    assert df["run"].unique().tolist() == ["a"]
    assert any("bare" in e for e in df.attrs["exclusions"])
    assert any("empty" in e for e in df.attrs["exclusions"])


def no_directory(path: Path) -> Path:
    return path / "nowhere"


def no_runs(path: Path) -> Path:
    (path / "bare").mkdir()
    return path


def no_records(path: Path) -> Path:
    write_run(path / "a", [])
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [(no_directory, "is not a directory"), (no_runs, "holds no runs"), (no_records, "holds no record")],
)
def test_what_is_no_sweep_is_one_line_with_a_remedy(
    tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    with pytest.raises(SweepError, match=said) as caught:
        nacme.load_sweep(make(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every sweep as a large one: with a cache, and read in two processes."""
    monkeypatch.setattr(records, "CACHE_FROM", 1)
    monkeypatch.setattr(records, "PARALLEL_FROM", 2)
    monkeypatch.setattr(records, "MOST_WORKERS", 2)


def various(path: Path) -> Path:
    """Seven runs that differ in what they hold."""
    write_run(path / "a", [record(0, nac_me=0.5), record(50)])
    write_run(path / "b", [record(0, test_envs=[0, 2], val_loss=1.5)])
    write_run(path / "c", [])
    write_run(path / "d", [record(0), record(0, nac_me=None, nac={"alpha": 1, "degenerate": False})])
    write_run(path / "e", [record(0), record(100, nac_me=math.nan)])
    write_run(path / "f", [record(0, nac={"alpha": 2, "grid": ["nac_me_a2"]}, nac_me_a2=0.25)])
    (path / "e" / "model_step100.pkl").touch()
    (path / "f" / "results.jsonl").open("a").write("{")
    (path / "g").mkdir()
    return path


def read(path: Path, **options: Any) -> tuple[pd.DataFrame, list[str]]:
    with pytest.warns(NacmeWarning) as caught:
        df = nacme.load_sweep(path, **options)
    return df, [str(w.message) for w in caught]


@pytest.mark.usefixtures("large")
def test_several_processes_and_the_cache_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = various(tmp_path / "sweep")
    parallel, said = read(sweep)
    assert (sweep / ".nacme_cache.npz").is_file()
    cached, said_again = read(sweep)
    monkeypatch.setattr(records, "PARALLEL_FROM", 100)
    plain, said_plainly = read(sweep, cache=False)
    assert len(plain) == 8
    for df in (parallel, cached):
        pd.testing.assert_frame_equal(df, plain)
        assert df.attrs == plain.attrs
    assert said == said_again == said_plainly
    assert len(said) == 3


@pytest.mark.usefixtures("large")
def test_the_cache_serves_and_notices_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "a", [record(0)])
    write_run(tmp_path / "b", [record(0)])
    nacme.load_sweep(tmp_path)

    def fail(*_: object) -> None:
        raise AssertionError("read anew")

    with monkeypatch.context() as patch:
        patch.setattr(records, "_read", fail)
        assert len(nacme.load_sweep(tmp_path)) == 2
    with open(run / "results.jsonl", "a") as file:
        file.write(json.dumps(record(50)) + "\n")
    assert len(nacme.load_sweep(tmp_path)) == 3
    write_run(run, [{"step": 0, "nac_me": 0.75}], name="nac.jsonl")
    assert nacme.load_sweep(tmp_path)["nac_me"][0] == 0.75
    (run / "done").touch()
    assert nacme.load_sweep(tmp_path)["done"].tolist() == [True, True, False]
    write_run(tmp_path / "c", [record(0)])
    assert nacme.load_sweep(tmp_path)["run"].nunique() == 3
    # a cache of before a column was read lacks it
    with monkeypatch.context() as patch:
        patch.setattr(records, "_read", fail)
        patch.setattr(sweep_cache, "FROM_NAC", (*sweep_cache.FROM_NAC, "more"))
        with pytest.raises(AssertionError, match="read anew"):
            nacme.load_sweep(tmp_path)


@pytest.mark.usefixtures("large")
def test_a_broken_cache_or_one_that_cannot_be_written_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "a", [record(0)])
    cache = tmp_path / ".nacme_cache.npz"
    for broken in (b"", b"PK\x03\x04 not a zip file", b"text"):
        cache.write_bytes(broken)
        with pytest.warns(NacmeWarning, match=r"\.nacme_cache\.npz is no cache of records"):
            assert len(nacme.load_sweep(tmp_path)) == 1
        assert len(cache.read_bytes()) > 100
    cache.unlink()

    def read_only(*_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr("nacme.system.files.replace", read_only)
    assert len(nacme.load_sweep(tmp_path)) == 1
    assert not list(tmp_path.glob(".nacme_cache*"))


@pytest.mark.usefixtures("large")
def test_a_worker_that_cannot_start_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        write_run(tmp_path / name, [record(0)])
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert nacme.load_sweep(tmp_path)["run"].tolist() == ["a", "b", "c"]


def test_a_run_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(0)])
    (tmp_path / "b" / "results.jsonl").mkdir(parents=True)
    with pytest.warns(NacmeWarning, match="b/results.jsonl cannot be read"):
        assert nacme.load_sweep(tmp_path)["run"].tolist() == ["a"]


def test_a_small_sweep_is_spared_the_cache(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(0)])
    nacme.load_sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("accs", [[0.9, None, 0.5], [None, 0.9, 0.5], [0.9, float("nan"), 0.5]])
def test_the_worst_env_is_undefined_where_an_env_is_whatever_the_order(
    tmp_path: Path, accs: list[float | None]
) -> None:
    more = {f"env{i}_out_acc": acc for i, acc in enumerate([*accs[:2], 0.1])}
    write_run(tmp_path / "a", [record(0, test_envs=[2], **more)])
    row = nacme.load_sweep(tmp_path).iloc[0]
    assert math.isnan(row.val_acc)
    assert math.isnan(row.val_acc_worst)


def copied(sweep: Path, name: str = "a", as_: str = "copy", **changed: Any) -> Path:
    """Copy a run's records, changing some keys of each."""
    lines = [{**json.loads(line), **changed} for line in (sweep / name / "results.jsonl").read_text().splitlines()]
    return write_lines(sweep / as_, lines)


def test_a_copied_run_counts_once_and_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(step, nac_me=0.01 * step) for step in (0, 50)])
    write_run(tmp_path / "b", [record(step, loss=step, env0_in_acc=0.01 * step) for step in (0, 50)])
    alone = nacme.load_sweep(tmp_path)
    copied(tmp_path)
    with pytest.warns(NacmeWarning, match="1 run is a copy .*: copy of a"):
        df = nacme.load_sweep(tmp_path)
    pd.testing.assert_frame_equal(df, alone)
    assert "copy of a" in df.attrs["exclusions"][-1]


def test_the_same_run_trained_or_scored_elsewhere_is_a_copy_and_the_fuller_one_stays(tmp_path: Path) -> None:
    lines = [record(step) for step in (0, 50)]
    for line in lines:
        line["args"]["output_dir"] = "here"
    write_lines(tmp_path / "a", lines[:1])  # copied while it was training
    full = [{**line, "step_time": 2.0, "args": {**line["args"], "output_dir": "there"}} for line in lines]
    write_lines(tmp_path / "b", full)
    write_lines(tmp_path / "c", full)
    write_run(tmp_path / "c", [{"step": 0, "val_loss": 0.5}], name="nac.jsonl")
    with pytest.warns(NacmeWarning, match="2 runs are copies .*: a of c, b of c"):
        df = nacme.load_sweep(tmp_path)
    assert df["run"].tolist() == ["c", "c"]


def test_runs_that_differ_in_args_or_numbers_are_no_copies(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [record(0, nac_me=0.1)])
    other = record(0, nac_me=0.1)
    other["args"]["steps"] = 101
    write_lines(tmp_path / "b", [other])
    copied(tmp_path, as_="c", env1_out_acc=0.21)
    copied(tmp_path, as_="d", nac_me=0.2)
    with pytest.warns(NacmeWarning, match="same training .*a, d") as caught:
        df = nacme.load_sweep(tmp_path)
    assert sorted(df["run"].unique()) == ["a", "b", "c", "d"]
    assert len(caught) == 1


def test_copies_are_found_in_a_cached_sweep_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "CACHE_FROM", 1)
    write_run(tmp_path / "a", [record(0), record(50)])
    copied(tmp_path)
    for _ in range(2):
        with pytest.warns(NacmeWarning, match="copy of a"):
            assert nacme.load_sweep(tmp_path)["run"].unique().tolist() == ["a"]
    assert (tmp_path / sweep_cache.NAME).exists()


def test_shares_of_checkpoints_where_coverage_only_counts_are_told_by_fault():
    df = pd.DataFrame(
        {
            "degenerate": pd.array([True, True, False, True, pd.NA], dtype="boolean"),
            "occupied_bins": [1.0, 20.0, 20.0, 20.0, None],
            "full_bins": [0.0, 0.0, 5.0, 0.05, None],
        }
    )
    few, unfilled = degenerate_shares(df).items()
    assert few == ("nearly every state falls in one or two bins", 0.25)
    assert unfilled == ("hardly a bin is full", 0.75)
    assert degenerate_shares(df[2:3]) == degenerate_shares(df[[]]) == {}
