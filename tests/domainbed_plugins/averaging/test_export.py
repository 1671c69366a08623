"""Handing on candidates: a soup as a checkpoint, an ensemble as one file that becomes a module."""

import json
import shutil

import pytest
import torch

import nacme
from domainbed_plugins.average import AverageOptions, average
from domainbed_plugins.averaging.export import export_named
from domainbed_plugins.recording.options import RecordOptions
from domainbed_plugins.runs.checkpoints import CheckpointError, load_checkpoint
from nacme.errors import SweepError
from nacme.settings import CoverageSettings

pytestmark = pytest.mark.filterwarnings("ignore::nacme.errors.NacmeWarning")

FLAGS = ["--dataset", "RotatedDigits", "--steps", "7", "--checkpoint_freq", "3", "--test_envs", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("exporting") / "sweep"


@pytest.fixture
def sweep(made, train_run, tmp_path):
    if not made.exists():
        for seed in (1, 2):
            flags = [*FLAGS, "--hparams_seed", str(seed), "--hparams", '{"batch_size": 16}']
            train_run(made / f"run{seed}", *flags, average=["ema"], eval_splits="fast")
        average(made, None, AverageOptions(RecordOptions(CoverageSettings(10.0, fill=0.1), layers="penultimate")))
    return shutil.copytree(made, tmp_path / "sweep")


def candidate(sweep, name):
    return next((sweep / "candidates").glob(f"{name}-*.json"))


def states(sweep):
    return [load_checkpoint(sweep / run / "model.pkl")["model_dict"] for run in ("run1", "run2")]


def test_a_soup_is_exported_as_an_ordinary_checkpoint(sweep, tmp_path):
    card = json.loads(export_named(candidate(sweep, "soup-uniform"), None, tmp_path / "out").read_text())
    assert (card["candidate"], card["networks"], len(card["members"])) == ("soup:uniform", 1, 2)
    a, b = states(sweep)
    weights = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    for key in ("classifier.weight", "featurizer.conv1.bias"):
        assert torch.allclose(weights[key], (a[key] + b[key]) / 2, atol=1e-7)
    saved = load_checkpoint(tmp_path / "out" / "model.pkl")
    assert saved.keys() >= {"args", "model_hparams", "model_input_shape", "model_num_classes", "model_num_domains"}
    assert all(torch.equal(saved["model_dict"][key], weights[key]) for key in weights)


def test_an_ensemble_becomes_a_module(sweep, tmp_path):
    from domainbed_plugins.backends import find as backends
    from domainbed_plugins.runs.checkpoints import build_algorithm

    card = json.loads(export_named(candidate(sweep, "ensemble"), None, tmp_path / "out").read_text())
    assert (card["weights"], card["networks"]) == ("ensemble.pt", 2)
    model = nacme.load_ensemble(tmp_path / "out" / "ensemble.pt")
    x = torch.rand(5, *card["input_shape"])
    parts = []
    for run in ("run1", "run2"):
        content = load_checkpoint(sweep / run / "model.pkl")
        network = build_algorithm(backends.embedded(), "ERM", card["input_shape"], 10, 5, content["model_hparams"])
        network.load_state_dict(content["model_dict"])
        parts.append(network.eval().predict(x).softmax(1))
    assert torch.allclose(model(x).softmax(1), torch.stack(parts).mean(0), atol=1e-6)
    assert not model.training
    assert isinstance(model, torch.nn.Module)


def test_nothing_in_a_foreign_file_is_executed(tmp_path):
    torch.save({"model_dict": {}}, tmp_path / "other.pt")
    for name, content in (("other.pt", None), ("bad.pt", b"cposix\nsystem\n(S'touch hacked'\ntR.")):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            nacme.load_ensemble(tmp_path / name)
    assert not (tmp_path / "hacked").exists()


def test_saved_models_are_exported_by_their_file(sweep, tmp_path):
    own = json.loads(export_named(sweep / "run1" / "model.pkl", None, tmp_path / "a").read_text())
    ema = json.loads(export_named(sweep / "run1" / "model_ema.pkl", None, tmp_path / "b").read_text())
    assert (own["candidate"], own["step"], ema["candidate"], ema["step"]) == ("raw", 6, "ema", 6)
    saved = load_checkpoint(sweep / "run1" / "model_ema.pkl")["model_dict"]
    weights = torch.load(tmp_path / "b" / "model.pt", weights_only=True)
    assert all(torch.equal(weights[key], saved[key]) for key in saved)
    assert own["values"]["nac_me"] != ema["values"]["nac_me"]


def test_what_recommend_names_can_be_exported(sweep, tmp_path):
    for one_network in (True, False):
        row = nacme.recommend(nacme.load_sweep(sweep), one_network=one_network).iloc[0]
        card = json.loads(export_named(sweep.__class__(row["checkpoint"]), None, tmp_path / "out").read_text())
        assert card["candidate"] == row["candidate"]
    assert nacme.recommend(nacme.load_sweep(sweep)).shape[0] == 1  # a function still, once its module is loaded


def test_members_outside_the_sweep_are_refused(sweep, tmp_path):
    path = candidate(sweep, "soup-uniform")
    record = json.loads(path.read_text())
    record["members"][0]["run"] = "../elsewhere"
    path.write_text(json.dumps(record))
    with pytest.raises(SweepError, match="names a member outside its sweep"):
        export_named(path, None, tmp_path / "out")
    path.write_text("{}")
    with pytest.raises(SweepError, match="is no candidate of nacme"):
        export_named(path, None, tmp_path / "out")


def test_a_run_needs_a_step(sweep, tmp_path):
    with pytest.raises(SweepError, match="give a run's directory and a step"):
        export_named(sweep / "run1", None, tmp_path / "out")
