"""One reader: what load_sweep survives, prune, export, score and status survive, and all see the same records."""

import json
import multiprocessing
import os

import pytest
import torch

from domainbed_plugins.runs.export import export
from domainbed_plugins.runs.keep import prune
from domainbed_plugins.runs.records import Ledger, last_step, read_records, update
from domainbed_plugins.runs.saved import find_jobs, saved_models
from domainbed_plugins.scoring.options import ScoreOptions
from nacme.errors import ConfigError, NacmeError, NacmeWarning, SweepError
from nacme.records.lines import Faults, read_lines
from nacme.settings import CoverageSettings
from nacme.system import files
from nacme.system.tensors import TRUST, CheckpointError, load_tensors


def record(step, steps=None, **more):
    accuracies = {
        f"env{env}_{part}_acc": 0.1 * (env + 1) + step / 1000 for env in range(3) for part in ("in", "out")
    }
    args = {"dataset": "Toy", "algorithm": "ERM", "test_envs": [0], "steps": steps}
    args |= {"seed": 0, "trial_seed": 0, "hparams_seed": 0, "holdout_fraction": 0.2}
    return {"step": step, "args": args, "hparams": {"lr": 0.1}, **accuracies, **more}


def make_run(run, steps=(0, 75, 150, 225, 300), told=None, says_step=True):
    """A finished run with all its models; ``told`` is its ``args.steps``."""
    run.mkdir(parents=True)
    (run / "results.jsonl").write_text("".join(json.dumps(record(step, told)) + "\n" for step in steps))
    for step in steps:
        content = {"model_dict": {"weight": torch.full((2,), float(step))}, "args": {}}
        content |= {"step": step} if says_step else {}
        torch.save(content, run / f"model_step{step}.pkl")
    os.rename(run / f"model_step{steps[-1]}.pkl", run / "model.pkl")
    (run / "done").write_text("done")
    return run


def lose_records(run, count=1):
    lines = (run / "results.jsonl").read_text().splitlines(keepends=True)
    (run / "results.jsonl").write_text("".join(lines[:-count]))


def models(run):
    return {path.name for path in run.glob("*.pkl")}


@pytest.mark.parametrize(("told", "says_step"), [(301, False), (None, True), (301, True)])
def test_a_model_is_not_taken_for_an_earlier_step_than_its_own(told, says_step, tmp_path, capsys):
    run = make_run(tmp_path / "run", told=told, says_step=says_step)
    lose_records(run)
    before = models(run)
    assert prune(tmp_path, ["last"], yes=True) == []
    assert models(run) == before
    assert "is of step 300" in capsys.readouterr().err
    (run / "model_step225.pkl").unlink()
    with pytest.raises(SweepError, match=r"model\.pkl is of step 300") as error:
        export(run, 225, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_last_model_is_exported_as_the_step_that_it_is_of(tmp_path):
    run = make_run(tmp_path / "run")
    card = json.loads(export(run, 300, tmp_path / "out").read_text())
    assert card["step"] == 300
    assert torch.load(tmp_path / "out" / "model.pt", weights_only=True)["weight"].tolist() == [300.0, 300.0]
    os.rename(run / "model_step75.pkl", run / "model_step150.pkl")
    with pytest.raises(SweepError, match=r"model_step150\.pkl is of step 75, not 150: it was renamed"):
        export(run, 150, tmp_path / "other")


def test_a_run_that_cannot_be_read_whole_is_not_pruned_and_the_others_are(tmp_path, capsys):
    whole, torn = make_run(tmp_path / "whole"), make_run(tmp_path / "torn")
    with (torn / "results.jsonl").open("a") as file:
        file.write('{"step": 3')
    before = models(torn)
    found = prune(tmp_path, ["last"], yes=True)
    assert {leftover.path.parent for leftover in found} == {whole}
    assert models(torn) == before
    assert models(whole) == {"model.pkl"}
    assert "results.jsonl, line 6: truncated record" in capsys.readouterr().err


def test_nothing_is_deleted_or_measured_through_a_link_out_of_the_sweep(tmp_path, capsys):
    outside = make_run(tmp_path / "outside" / "run")
    make_run(tmp_path / "sweep" / "mine")
    (tmp_path / "sweep" / "link").symlink_to(outside)
    os.rename(tmp_path / "sweep" / "mine" / "model_step75.pkl", tmp_path / "precious")
    (tmp_path / "sweep" / "mine" / "model_step75.pkl").symlink_to(tmp_path / "precious")
    before = models(outside)
    prune(tmp_path / "sweep", ["last"], yes=True)
    assert models(outside) == before
    assert (tmp_path / "precious").exists()
    assert "link is a link out of" in capsys.readouterr().err
    failures = []
    jobs = find_jobs(tmp_path / "sweep", failures)
    assert {job.directory.name for job in jobs} == {"mine"}
    assert [line for line in failures if "link out of" in line]


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{", b"\0" * 50, b"[1]", b"\xff", b'{"step": "7"}', b'{"step": null}', b'{"step": 1e400}'),
        *(b'{"step": [1]}', b'{"step": ' + b"9" * 5000 + b"}", b"[" * 2000 + b"]" * 2000, b'{"step": -1}'),
    ],
)
def test_all_readers_survive_what_the_table_survives(line, tmp_path):
    run = make_run(tmp_path / "run", told=301)
    content = (run / "results.jsonl").read_bytes()
    (run / "results.jsonl").write_bytes(line + b"\n" + content)
    (run / "nac.jsonl").write_bytes(line + b"\n")
    read = read_records(run)
    assert list(read.by_step) == [0, 75, 150, 225, 300]
    assert len(read.faults) == (0 if not line else 2)
    assert last_step(run) == 300
    failures = []
    assert [job.step for job in find_jobs(tmp_path, failures)] == [0, 75, 150, 225, 300]
    assert list(saved_models(run, read)) == [0, 75, 150, 225, 300]
    assert export(run, 75, tmp_path / "out").exists()


def test_a_million_lines_of_junk_are_one_fault(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"junk\n" * 10**6 + b'{"step": 1}\n')
    faults = Faults()
    assert [record["step"] for _, record in read_lines(str(path), faults)] == [1]
    (said,) = faults.texts()
    assert said == f"{path}, lines 1, 2, 3 and 999997 more: corrupt record; skipped, the rest is kept"


def measure(run, *criteria, overwrite=False, grid=(), **options):
    """Measure what is missing at step 5, as score does, and say what that was."""
    asked = ScoreOptions(CoverageSettings(), criteria=list(criteria) or None, grid=tuple(grid), **options)
    ledger = Ledger(run, asked.asked())
    lacking = asked.lacking(ledger.record(5))
    values = dict.fromkeys(criteria if lacking is None else lacking, 0.25)
    values |= {f"nac_me_a{settings.alpha:g}": 0.1 for settings in grid}
    nac = {"layers": ["norm"], "grid": {f"nac_me_a{settings.alpha:g}": {} for settings in grid}}
    if lacking != []:
        ledger.add(5, {**values, "nac_me": 0.5, "val_loss": 1.0, "nac": nac}, overwrite=overwrite)
    return lacking


def on_file(run):
    return json.loads((run / "nac.jsonl").read_text())


def test_criteria_measured_one_after_the_other_stay_beside_each_other(tmp_path):
    assert measure(tmp_path, "ece") is None
    assert measure(tmp_path, "ece", "margin") == ["margin"]
    assert on_file(tmp_path)["ece"] == on_file(tmp_path)["margin"] == 0.25
    for names in (["ece"], ["margin"], ["ece", "margin"]):
        assert measure(tmp_path, *names) == []
    # other settings are another measurement, and forget nothing either
    assert measure(tmp_path, "ece", split="in") is None
    assert on_file(tmp_path)["margin"] == 0.25
    measure(tmp_path, "sharpness", overwrite=True)
    assert on_file(tmp_path).keys() == {"step", "sharpness", "nac_me", "val_loss", "nac"}


def test_settings_of_a_grid_add_up_and_cover_what_is_asked_again(tmp_path):
    grid = [CoverageSettings(alpha=1.0), CoverageSettings(alpha=2.0)]
    for settings in grid:
        assert measure(tmp_path, "ece", grid=[settings]) is None
    record = on_file(tmp_path)
    assert record["nac"]["grid"].keys() == {"nac_me_a1", "nac_me_a2"} <= record.keys()
    assert measure(tmp_path, "ece", grid=grid) == []


def count_up(path, process):
    for step in range(20):
        update(path, step, lambda record: {**record, f"by{process}": True})


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "nac.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count_up, args=(path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(20))
    assert all({f"by{number}" for number in range(4)} <= record.keys() for record in records)
    assert [entry.name for entry in tmp_path.iterdir()] == ["nac.jsonl"]


def test_what_cannot_be_read_is_kept_when_the_file_is_written_anew(tmp_path):
    path = tmp_path / "nac.jsonl"
    path.write_bytes(b'{"step": 1, "ece": 0.5}\ntorn')
    with pytest.warns(NacmeWarning, match=r"line 2: truncated record.*the file is kept as nac\.jsonl\.damaged-"):
        update(path, 2, lambda record: {"ece": float("nan")})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "ece": 0.5},
        {"step": 2, "ece": None},
    ]
    (kept,) = tmp_path.glob("nac.jsonl.damaged-*")
    assert kept.read_bytes().endswith(b"torn")


def test_values_are_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "nac.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigError, match=r"nac\.jsonl cannot be written: it is a symbolic link"):
        update(tmp_path / "nac.jsonl", 1, lambda record: {"ece": 1})
    assert (tmp_path / "precious").read_text() == "precious"


def test_an_old_torch_loads_only_what_this_process_wrote(tmp_path, monkeypatch):
    path = tmp_path / "model.pkl"
    torch.save({"model_dict": {}}, path)
    for version in ("2.4.1", "2.9.0+cu130"):
        monkeypatch.setattr(torch, "__version__", version)
        monkeypatch.delenv(TRUST, raising=False)
        with pytest.raises(CheckpointError, match=rf"not loaded: torch {version[:3]}.*set {TRUST}=1"):
            load_tensors(path)
        monkeypatch.setenv(TRUST, "1")
        assert load_tensors(path) == {"model_dict": {}}
    monkeypatch.delenv(TRUST)
    files.replace(path, lambda file: torch.save({"own": 1}, file))
    assert load_tensors(path) == {"own": 1}
    monkeypatch.setattr(torch, "__version__", "2.10.0a0")
    torch.save({"model_dict": {}}, path)
    assert load_tensors(path) == {"model_dict": {}}


def test_what_is_no_run_is_one_line(tmp_path):
    for call in (lambda: export(tmp_path / "nowhere", 0, tmp_path / "out"), lambda: prune(tmp_path, ["last"])):
        with pytest.raises(NacmeError) as error:
            call()
        assert "\n" not in str(error.value)
