"""A run that was killed and started again equals one that never stopped, to the last digit."""

import json
import os
import signal

import pytest
import torch

from domainbed_plugins.runs import paths
from domainbed_plugins.runs.lock import BusyError, lock_note, locked
from domainbed_plugins.testbed.algorithms import ALGORITHMS
from domainbed_plugins.training.signals import InterruptedRun
from nacme.errors import ConfigError, NacmeError

pytestmark = pytest.mark.filterwarnings("ignore::nacme.errors.DegenerateCoverageWarning")

SHORT = ["--dataset", "RotatedDigits", "--steps", "9", "--checkpoint_freq", "3", "--test_envs", "1"]
HPARAMS = {"irm_penalty_anneal_iters": 3, "vrex_penalty_anneal_iters": 4}


def stop(number=signal.SIGTERM):
    return lambda: os.kill(os.getpid(), number)


def same_model(a, b):
    a, b = (torch.load(run / "model.pkl", weights_only=True)["model_dict"] for run in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def interrupt_everywhere(train_run, crash, run, flags, **options):
    """Kill a run between checkpoints, right after one, and stop it by signals; then let it end."""
    for step, number in ((1, None), (4, None), (4, signal.SIGTERM), (6, None), (7, signal.SIGUSR1)):
        with pytest.raises(InterruptedRun if number else crash.error):
            train_run(run, *flags, after={step: stop(number) if number else crash}, **options)
    train_run(run, *flags, **options)


def assert_resumes(train_run, crash, read_records, tmp_path, flags, **options):
    train_run(tmp_path / "whole", *flags, **options)
    interrupt_everywhere(train_run, crash, tmp_path / "parts", flags, **options)
    assert read_records(tmp_path / "parts") == read_records(tmp_path / "whole")
    assert len(read_records(tmp_path / "parts")) == 4
    assert same_model(tmp_path / "parts", tmp_path / "whole")
    assert not {paths.STATE, paths.LOCK} & set(os.listdir(tmp_path / "parts"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_interrupted_run_equals_a_whole_one(algorithm, train_run, crash, read_records, tmp_path):
    flags = [*SHORT, "--algorithm", algorithm, "--hparams", json.dumps(HPARAMS)]
    assert_resumes(train_run, crash, read_records, tmp_path, flags)


@pytest.mark.parametrize(
    ("more", "options"),
    [
        (["--hparams", '{"class_balanced": true}'], {}),
        (["--task", "domain_adaptation", "--uda_holdout_fraction", "0.3"], {}),
        ([], {"eval_splits": "fast"}),
        pytest.param([], {"n_workers": 1}, marks=pytest.mark.slow),
    ],
    ids=["balanced", "adaptation", "fast", "worker"],
)
def test_every_kind_of_stream_resumes(more, options, train_run, crash, read_records, tmp_path):
    assert_resumes(train_run, crash, read_records, tmp_path, [*SHORT, *more], **options)


@pytest.mark.domainbed
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("algorithm", ["ERMPlusPlus", "Fish", "MTL"])
def test_domainbeds_algorithms_resume(algorithm, domainbed, train_run, crash, read_records, tmp_path):
    flags = [
        "--dataset",
        "Debug28",
        "--data_dir",
        "none",
        "--algorithm",
        algorithm,
        "--hparams",
        '{"batch_size": 8}',
    ]
    flags += SHORT[2:]
    assert_resumes(train_run, crash, read_records, tmp_path, flags, n_workers=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.data
@pytest.mark.domainbed
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("algorithm", "workers"), [("ERM", 0), ("MTL", 0), ("DANN", 0), ("ERMPlusPlus", 0), ("ERM", 1)]
)
def test_rotated_mnist_resumes(
    algorithm, workers, domainbed, nacme_data, train_run, crash, read_records, tmp_path
):
    flags = ["--dataset", "RotatedMNIST", "--data_dir", str(nacme_data / "mnist10k"), "--algorithm", algorithm]
    flags += ["--hparams", '{"batch_size": 16, "linear_steps": 2}', "--steps", "6", "--checkpoint_freq", "3"]
    options = {"n_workers": workers, "eval_splits": "fast"}
    train_run(tmp_path / "whole", *flags, **options)
    for after, error in ((crash, crash.error), (stop(), InterruptedRun)):
        with pytest.raises(error):
            train_run(tmp_path / "parts", *flags, after={4: after}, **options)
    train_run(tmp_path / "parts", *flags, **options)
    assert read_records(tmp_path / "parts") == read_records(tmp_path / "whole")
    assert len(read_records(tmp_path / "parts")) == 3
    assert same_model(tmp_path / "parts", tmp_path / "whole")


def test_stopping_exits_with_its_own_code_and_says_where_it_goes_on(train_run, tmp_path, capsys):
    with pytest.raises(InterruptedRun, match="SIGTERM before step 5 of 9") as stopped:
        train_run(tmp_path / "run", *SHORT, after={4: stop()})
    assert stopped.value.exit_code == 75
    train_run(tmp_path / "run", *SHORT)
    assert "Resumed before step 5 of 9" in (tmp_path / "run" / "out.txt").read_text()
    assert (tmp_path / "run" / "done").exists()


def test_a_torn_line_and_repeated_records_are_mended(train_run, crash, read_records, tmp_path):
    train_run(tmp_path / "whole", *SHORT)
    with pytest.raises(crash.error):
        train_run(tmp_path / "run", *SHORT, after={7: crash})
    results = tmp_path / "run" / "results.jsonl"
    first, *rest = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(first + b"".join(rest) + rest[-1] + b'{"step": 8, "tor')
    train_run(tmp_path / "run", *SHORT)
    assert read_records(tmp_path / "run") == read_records(tmp_path / "whole")


def test_a_record_that_the_crash_swallowed_comes_from_the_state(train_run, crash, read_records, tmp_path):
    train_run(tmp_path / "whole", *SHORT)
    with pytest.raises(crash.error):
        train_run(tmp_path / "run", *SHORT, after={6: crash})
    results = tmp_path / "run" / "results.jsonl"
    results.write_bytes(b"".join(results.read_bytes().splitlines(keepends=True)[:-1]))
    train_run(tmp_path / "run", *SHORT)
    assert read_records(tmp_path / "run") == read_records(tmp_path / "whole")


def test_missing_records_are_not_passed_over(train_run, crash, tmp_path):
    with pytest.raises(crash.error):
        train_run(tmp_path / "run", *SHORT, after={6: crash})
    (tmp_path / "run" / "results.jsonl").write_bytes(b"")
    with pytest.raises(NacmeError, match="holds 0 records where the run's state says 2"):
        train_run(tmp_path / "run", *SHORT)


def test_a_done_run_is_left_alone(train_run, tmp_path, capsys):
    train_run(tmp_path / "run", *SHORT)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    train_run(tmp_path / "run", *SHORT)
    assert "is done" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_records_without_a_state_are_refused(train_run, crash, tmp_path):
    with pytest.raises(crash.error):
        train_run(tmp_path / "run", *SHORT, after={4: crash})
    (tmp_path / "run" / paths.STATE).unlink()
    before = (tmp_path / "run" / "results.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="no state to go on from"):
        train_run(tmp_path / "run", *SHORT)
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == before


def test_other_settings_are_refused(train_run, crash, tmp_path):
    with pytest.raises(crash.error):
        train_run(tmp_path / "run", *SHORT, after={4: crash})
    with pytest.raises(ConfigError, match="begun with algorithm"):
        train_run(tmp_path / "run", *SHORT, "--algorithm", "CORAL")
    with pytest.raises(ConfigError, match="begun with nac "):
        train_run(tmp_path / "run", *SHORT, split="in")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", None])
def test_a_state_that_is_none_is_one_line(content, train_run, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    run = tmp_path / "run"
    run.mkdir()
    if content is None:
        torch.save(Evil(), run / paths.STATE)
    else:
        (run / paths.STATE).write_bytes(content)
    with pytest.raises(NacmeError, match=r"state\.pt is no state of a run"):
        train_run(run, *SHORT)
    assert not (tmp_path / "executed").exists()


def test_a_run_is_trained_by_one_process_at_a_time(train_run, tmp_path, monkeypatch):
    monkeypatch.setattr("domainbed_plugins.runs.lock.PATIENCE", 0.1)
    run = tmp_path / "run"
    run.mkdir()
    read, write = os.pipe()
    child = os.fork()
    if not child:  # another process holds the lock until it is killed
        with locked(run) as lock:
            lock.note(3, 9, 2.5)
            os.write(write, b"x")
            signal.pause()
    os.read(read, 1)
    note = lock_note(run / paths.LOCK)
    assert (note["pid"], note["step"], note["steps"], note["rate"]) == (child, 3, 9, 2.5)
    with pytest.raises(BusyError, match=f"is being trained by process {child} on "):
        train_run(run, *SHORT)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert lock_note(run / paths.LOCK) is None
    train_run(run, *SHORT)
    assert (run / "done").exists()
