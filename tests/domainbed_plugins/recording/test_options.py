"""The options of a record: the same from flags, from YAML and from Python, and kept by what was begun before."""

import json
import subprocess
import sys

import pytest

from domainbed_plugins.recording.flags import record_options
from domainbed_plugins.recording.options import as_begun, begun_layers, read_layers
from domainbed_plugins.score import parser as score_parser
from domainbed_plugins.scoring.options import ScoreOptions
from domainbed_plugins.sweep.commands import run_sweep
from domainbed_plugins.sweep.spec_file import parse_spec
from domainbed_plugins.train import parser as train_parser
from domainbed_plugins.training.options import TrainOptions
from nacme.errors import ConfigError
from nacme.settings import CoverageSettings, parse_key

FLAGS = ["--nac_alpha", "1", "--nac_fill", "0.1", "--nac_split", "in", "--nac_layers", "penultimate"]
FLAGS += ["--nac_grid", "alpha=1,auto", "split=in,out", "layer=featurizer.conv3", "--criteria", "ece"]
NAC = {"alpha": 1, "fill": 0.1, "split": "in", "layers": "penultimate"}
NAC["grid"] = {"alpha": [1, "auto"], "split": ["in", "out"], "layer": "featurizer.conv3"}


def test_flags_yaml_and_python_give_the_same():
    spec = parse_spec({"datasets": ["RotatedDigits"], "algorithms": ["ERM"], "criteria": ["ece"], "nac": NAC})
    settings = CoverageSettings(1.0, fill=0.1)
    grid = tuple(
        CoverageSettings(alpha, fill=0.1, layer=layer, split=split)
        for alpha in (1.0, "auto")
        for split in (None, "out")
        for layer in (None, "featurizer.conv3")
    )
    asked = TrainOptions(
        settings=settings, grid=grid, split="in", layers="penultimate", criteria=["ece"]
    ).as_json()
    found = [spec, record_options(train_parser().parse_args(FLAGS))]
    found.append(record_options(score_parser().parse_args(["sweep", *FLAGS])))
    for options in found:
        here = options.as_json()
        assert sorted(map(json.dumps, here.pop("grid"))) == sorted(map(json.dumps, asked["grid"]))
        assert here == {key: value for key, value in asked.items() if key != "grid"}
    assert TrainOptions(**spec.train_options()).as_json() == spec.as_json()


def test_a_split_has_its_own_key_and_leaves_the_others_as_they_were():
    plain, other = (
        CoverageSettings(0.1, 50, 500, layer="a.b"),
        CoverageSettings(0.1, 50, 500, layer="a.b", split="in"),
    )
    assert (plain.key(), other.key()) == ("nac_me_a0p1_m50_o500_at_a_b", "nac_me_a0p1_m50_o500_in_at_a_b")
    assert [parse_key(setting.key()).split for setting in (plain, other)] == ["main", "in"]
    assert parse_key(other.key()).layer == "a_b"
    assert "split" not in plain.as_json()
    with pytest.raises(ConfigError, match="split='inn' is unknown"):
        CoverageSettings(split="inn")


def test_no_layers_asked_for_means_those_that_were_begun_with():
    default = ScoreOptions()
    # null meant the penultimate layer once, and the record tells
    assert begun_layers(None, ["classifier:input"]) == "penultimate"
    assert begun_layers(None, ["featurizer.bn3"]) == "authors"
    assert as_begun(default, "penultimate").layers == "penultimate"
    assert as_begun(ScoreOptions(layers="authors"), "penultimate").layers == "authors"
    assert as_begun(default, ["featurizer.bn2"]).layers is None
    with pytest.raises(ConfigError, match="authors stands for all layers"):
        read_layers(["authors", "featurizer.bn2"])


MODULE = """
from nacme.criteria import criterion


@criterion(higher_is_better=False, sees="ind", needs=["logits"], cost="none", source="here")
def largest_logit(data):
    "The largest logit of all."
    return float(data.pooled_logits().max())
"""


def test_a_sweep_takes_criteria_of_the_users_own(tmp_path):
    """In a process of its own, since registering is for good."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "spec.yaml").write_text(
        "datasets: [RotatedDigits]\nalgorithms: [ERM]\ntest_envs: [[0]]\nsteps: 3\ncheckpoint_freq: 2\n"
        "criteria: [largest_logit]\ncriteria_module: mine.py\n"
    )
    command = [sys.executable, "-m", "nacme.cli", "sweep", "run", str(tmp_path / "spec.yaml")]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "sweep"), "--launcher", "local", "--jobs", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "sweep").glob("*/results.jsonl")
    assert all("largest_logit" in json.loads(line) for line in results.read_text().splitlines())


def layers_of(sweep):
    firsts = [path.read_text().splitlines()[0] for path in sweep.glob("*/results.jsonl")]
    return [json.loads(line)["nac"]["layers"] for line in firsts]


@pytest.mark.domainbed
@pytest.mark.filterwarnings("ignore")
def test_a_sweep_begun_at_the_penultimate_layer_goes_on_there(in_process, tmp_path):
    content = {"datasets": ["Debug28"], "algorithms": ["ERM"], "steps": 2, "hparams": {"batch_size": 8}}
    content |= {"nac": {"fill": 2}, "n_workers": 0}
    run_sweep(
        parse_spec({**content, "test_envs": [0], "nac": {"fill": 2, "layers": "penultimate"}}), tmp_path / "s"
    )
    # as it was written down when that was the default
    settings = json.loads((tmp_path / "s" / "sweep.json").read_text())
    (tmp_path / "s" / "sweep.json").write_text(json.dumps({**settings, "layers": None}))
    run_sweep(parse_spec({**content, "test_envs": [0, 1]}), tmp_path / "s", launcher="debug")
    layers = [
        json.loads(path.read_text().splitlines()[0])["nac"]["layers"]
        for path in tmp_path.glob("s/*/results.jsonl")
    ]
    assert layers == [["classifier:input"]] * 2
    run_sweep(parse_spec(content), tmp_path / "new", launcher="debug")
    (path, *_) = tmp_path.glob("new/*/results.jsonl")
    assert json.loads(path.read_text().splitlines()[0])["nac"]["layers"] == ["featurizer.bn3"]
