"""Our launchers in DomainBed's registry."""

import json
from pathlib import Path

import pytest

from domainbed_plugins import command_launchers
from domainbed_plugins.backends import find as backends
from nacme.errors import ConfigError

HPARAMS = '{"batch_size": 16, "lr": 0.01}'


@pytest.fixture
def registry(domainbed):
    registry = backends.module("command_launchers").REGISTRY
    before = dict(registry)
    yield registry
    registry.clear()
    registry.update(before)


@pytest.mark.domainbed
def test_domainbeds_own_sweep_runs_through_our_launcher(registry, domainbed, tmp_path, monkeypatch):
    from domainbed.scripts import sweep as stock

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command_launchers.register()
    arguments = {
        "dataset": "RotatedDigits",
        "algorithm": "ERM",
        "test_envs": [1, 2],
        "holdout_fraction": 0.2,
        "hparams_seed": 0,
        "data_dir": str(tmp_path / "with space"),
        "task": "domain_generalization",
        "trial_seed": 0,
        "seed": 7,
        "steps": 4,
        "hparams": HPARAMS,
    }
    stock.Job.launch([stock.Job(arguments, str(tmp_path / "sweep"))], registry["nacme"])
    job = stock.Job(arguments, str(tmp_path / "sweep"))
    assert job.state == stock.Job.DONE
    records = [json.loads(line) for line in (Path(job.output_dir) / "results.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 3]
    assert records[0]["args"]["test_envs"] == [1, 2]
    assert records[0]["args"]["data_dir"] == str(tmp_path / "with space")
    assert records[0]["hparams"]["batch_size"] == 16
    assert records[0]["nac_me"] is not None


def test_a_flag_without_a_value_and_another_script():
    job = command_launchers.parse_command(
        "python -m domainbed.scripts.train --algorithm ERM --data_dir None --output_dir out --test_envs 0"
    )
    assert (job.args["data_dir"], job.args["algorithm"], str(job.output_dir)) == (None, "ERM", "out")
    with pytest.raises(ConfigError, match="does not run domainbed"):
        command_launchers.parse_command("python train.py --lr 1")
