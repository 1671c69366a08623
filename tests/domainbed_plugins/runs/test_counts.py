"""``sham_permuted``: written when a run ends, read with its records, and computed by ``nacme score``."""

import json
import shutil

import pytest

import nacme
from domainbed_plugins.scoring.options import ScoreOptions
from domainbed_plugins.scoring.run import score
from nacme.criteria.shams import cycle
from nacme.settings import CoverageSettings

pytestmark = pytest.mark.filterwarnings("ignore")

RUN = ["--dataset", "RotatedDigits", "--steps", "9", "--checkpoint_freq", "2", "--save_model_every_checkpoint"]
SETTINGS = CoverageSettings(alpha=10.0, fill=0.1)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_is_written_at_the_end_and_read_with_the_records(train_run, tmp_path):
    train_run(tmp_path / "run", *RUN)
    controls = read(tmp_path / "run" / "controls.jsonl")
    assert [line["step"] for line in controls] == [0, 2, 4, 6, 8]
    df = nacme.load_sweep(tmp_path / "run")
    assert list(df["sham_permuted"]) == [line["sham_permuted"] for line in controls]
    assert not (tmp_path / "run" / "counts").exists()
    # of all samples with a fraction for O, the count has no say: the shams are the coverages of others
    train_run(tmp_path / "all", *RUN, settings=CoverageSettings(alpha=10.0, fill=0.1, correct_only=False))
    df = nacme.load_sweep(tmp_path / "all")
    order = cycle(5, 0)
    assert list(df["sham_permuted"]) == pytest.approx([df["nac_me"][donor] for donor in order])
    assert (df["sham_count"] == 1).all()


def test_a_stopped_run_has_the_same_ones(train_run, crash, tmp_path):
    train_run(tmp_path / "whole", *RUN)
    with pytest.raises(crash.error):
        train_run(tmp_path / "stopped", *RUN, after={5: crash})
    assert (tmp_path / "stopped" / "counts" / "step4.npz").exists()
    assert not (tmp_path / "stopped" / "controls.jsonl").exists()
    train_run(tmp_path / "stopped", *RUN)
    whole, stopped = (read(tmp_path / name / "controls.jsonl") for name in ("whole", "stopped"))
    assert whole == stopped


def test_it_is_left_out_where_it_is_not_asked_for(train_run, tmp_path):
    train_run(tmp_path / "run", *RUN, criteria=["ece"])
    assert not (tmp_path / "run" / "controls.jsonl").exists()


def test_scoring_gives_what_training_does_to_a_run_that_has_no_coverage(train_run, tmp_path):
    train_run(tmp_path / "sweep" / "run", *RUN)
    run = tmp_path / "sweep" / "run"
    controls = read(run / "controls.jsonl")
    kept = shutil.copytree(run, tmp_path / "kept")
    score(kept, None, ScoreOptions(SETTINGS))
    assert not any("sham_permuted" in line for line in read(kept / "nac.jsonl"))
    (run / "controls.jsonl").unlink()
    stock = [
        {key: value for key, value in record.items() if key.endswith("_acc") or key in ("step", "args", "hparams")}
        for record in read(run / "results.jsonl")
    ]
    (run / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in stock))
    score(run, None, ScoreOptions(SETTINGS))
    scored = read(run / "nac.jsonl")
    assert [line["sham_permuted"] for line in scored] == pytest.approx(
        [line["sham_permuted"] for line in controls]
    )
    assert not (run / "counts_scored").exists()
    assert "sham_permuted" in nacme.load_sweep(run)
