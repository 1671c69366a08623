"""The demo, started as a user starts it: from training to the report, and on from where it was stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow


def demo(*arguments, **options):
    command = [sys.executable, "-m", "nacme.cli", "demo", "--quick", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finished(out):
    return sorted(run.parent.name for run in (out / "sweep_quick").glob("*/done"))


@pytest.mark.timeout(600)
def test_demo_stopped_halfway_continues_and_ends_with_tables_and_a_report(tmp_path):
    out = tmp_path / "demo"
    stopped = demo("--out", out, start_new_session=True)
    deadline = time.monotonic() + 240
    while len(finished(out)) < 2 and time.monotonic() < deadline:
        assert stopped.poll() is None, stopped.communicate()
        time.sleep(0.1)
    os.killpg(stopped.pid, signal.SIGKILL)
    stopped.communicate()
    before = {name: (out / "sweep_quick" / name / "results.jsonl").read_bytes() for name in finished(out)}
    assert before

    resumed = demo("--out", out)
    stdout, stderr = resumed.communicate(timeout=500)
    assert resumed.returncode == 0, stderr
    assert f"8 runs, {len(before)} done already" in stderr
    for name, records in before.items():
        assert (out / "sweep_quick" / name / "results.jsonl").read_bytes() == records, "a finished run was touched"

    assert len(finished(out)) == 8
    last = []
    for records in (out / "sweep_quick").glob("*/results.jsonl"):
        lines = [json.loads(line) for line in records.read_text().splitlines()]
        assert [line["step"] for line in lines] == [*range(0, 150, 15), 150]
        assert all(line["nac_me"] is not None and line["val_loss"] > 0 for line in lines)
        test_env = lines[-1]["args"]["test_envs"][0]
        last.append(sum(lines[-1][f"env{i}_out_acc"] for i in range(6) if i != test_env) / 5)
    assert sum(last) / len(last) > 0.8

    for criterion in ("nac_me", "val_acc", "last", "oracle"):
        assert criterion in stdout
    assert "Rank correlation with test accuracy" in stdout
    report = out / "report_quick.html"
    assert stdout.rstrip().endswith(str(report))
    assert "<html" in report.read_text()


def test_read_only_output_directory_is_one_line(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    run = demo("--out", tmp_path / "demo")
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 1
    assert stderr.count("\n") == 1
    assert "cannot be written" in stderr


def test_output_directory_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "demo").write_text("")
    run = demo("--out", tmp_path / "demo")
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 1
    assert stderr.count("\n") == 1
    assert "cannot be written" in stderr
