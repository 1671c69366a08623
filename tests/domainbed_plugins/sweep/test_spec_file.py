"""Reading sweep specifications."""

import pytest

from domainbed_plugins.backends import networks
from domainbed_plugins.backends.arguments import make_hparams
from domainbed_plugins.sweep.jobs import Resources, make_jobs
from domainbed_plugins.sweep.spec_file import SHIPPED, find_spec, load_spec, parse_spec
from nacme.errors import ConfigError
from nacme.settings import CoverageSettings

MINIMAL = {"datasets": ["RotatedDigits"], "algorithms": ["ERM"]}


def test_a_whole_specification(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(
        """
datasets: [RotatedDigits]
algorithms: [ERM, CORAL]
test_envs: [0, [1, 2]]
hparams_seeds: 2
trial_seeds: [3]
steps: 10
checkpoint_freq: 5
hparams: {lr: 0.01}
nac: {alpha: auto, bins: 20, fill: 0.1, layers: [classifier], split: in, all_samples: true,
      grid: {alpha: [1, auto]}}
criteria: [entropy, confidence]
target_unlabeled: true
eval_splits: fast
n_workers: auto
keep: [best:nac_me, last]
average: [sma]
average_from: eoa
average_decay: 0.99
resources: {partition: gpu, time: "1:30:00", gpus: 1, cpus: 4, mem: 16G, parallel: 8}
"""
    )
    spec = load_spec(file)
    assert spec.test_envs == [[0], [1, 2]]
    assert (list(spec.hparams_seeds), list(spec.trial_seeds)) == ([0, 1], [3])
    assert spec.settings == CoverageSettings("auto", 20, 0.1, correct_only=False)
    assert [point.alpha for point in spec.grid] == [1.0, "auto"]
    assert {point.bins for point in spec.grid} == {20}
    assert (spec.layers, spec.split, spec.eval_splits, spec.n_workers) == (["classifier"], "in", "fast", "auto")
    assert (spec.criteria, spec.target_unlabeled) == (["entropy", "confidence"], True)
    assert spec.resources == Resources("gpu", None, "1:30:00", 1, 4, "16G", 8)
    assert list(spec.keep) == ["best:nac_me", "last"]
    assert (spec.average, spec.average_from, spec.average_decay) == (["sma"], 100, 0.99)
    assert {**spec.train_options()}.keys() >= {"average", "average_from", "average_decay"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": ["ERM"]}, "unknown key 'algorithm'; did you mean 'algorithms'"),
        ({"nac": {"alhpa": 1}}, "unknown key 'nac.alhpa'; did you mean 'alpha'"),
        ({"resources": {"gpu": 1}}, "unknown key 'resources.gpu'; did you mean 'gpus'"),
        ({"datasets": "RotatedDigits"}, "datasets must be a list of names, not 'RotatedDigits'"),
        ({"algorithms": ["ERM", "ERM"]}, "algorithms must be a list of different names"),
        ({"algorithms": None}, "algorithms must be a list of names, not None"),
        ({"test_envs": "all"}, "test_envs must be 'single', 'pairs', 'pairs_only', 'single_source' or a list"),
        ({"test_envs": [[0, 0]]}, "test_envs must be 'single', 'pairs', 'pairs_only', 'single_source' or a list"),
        ({"hparams_seeds": 0}, "hparams_seeds must be how many seeds"),
        ({"hparams_seeds": [1, 1]}, "hparams_seeds must be how many seeds"),
        ({"average": ["swa"]}, "average must be a list of sma and ema, not"),
        ({"average_from": "early"}, "average_from must be a number, not 'early'"),
        ({"steps": "many"}, "steps must be a whole number from 1, not 'many'"),
        ({"steps": True}, "steps must be a whole number from 1, not True"),
        ({"hparams": [1]}, "hparams must be hyper-parameters"),
        ({"nac": 3}, "nac must be keys and values, not 3"),
        ({"nac": {"alpha": "steep"}}, "nac.alpha must be a number, not 'steep'"),
        ({"nac": {"split": "test"}}, "nac.split must be 'out' or 'in', not 'test'"),
        ({"nac": {"fill": -1}}, "nac: .*fill"),
        ({"nac": {"grid": {"bins": [1]}}}, "nac.grid.bins must be a whole number from 2"),
        ({"n_workers": "some"}, "n_workers must be a whole number from 0, or 'auto'"),
        ({"resources": {"time": 5400}}, "resources.time must be Slurm's notation in quotes"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(change, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse_spec({**MINIMAL, **change}, "study.yaml")
    assert str(error.value).startswith("study.yaml: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [[], "text", None])
def test_a_file_that_is_no_mapping(content):
    with pytest.raises(ConfigError, match="the file must be keys and values"):
        parse_spec(content)


@pytest.mark.parametrize("missing", ["datasets", "algorithms"])
def test_what_is_missing_is_named(missing):
    with pytest.raises(ConfigError, match=f"{missing} is missing"):
        parse_spec({key: value for key, value in MINIMAL.items() if key != missing})


def test_broken_yaml_names_the_line(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("datasets: [A]\nalgorithms: [B\nsteps: 3\n")
    with pytest.raises(ConfigError, match=r"study\.yaml, line 3: not YAML"):
        load_spec(file)


def test_shipped_specifications_go_by_name_and_are_valid():
    names = {file.stem for folder in SHIPPED for file in folder.glob("*.yaml")}
    assert {"demo", "rotated_mnist", "colored_mnist", "pacs64", "nac_me_resnet50"} <= names
    for name in names:
        assert load_spec(name).datasets
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        find_spec("demmo")


def test_the_network_is_a_hyper_parameter():
    keys = {
        "featurizer": "timm:resnet18",
        "featurizer_weights": "w.pth",
        "head_init": "shared",
        "channels_last": True,
    }
    spec = parse_spec({**MINIMAL, "hparams": {"lr": 0.1}, **keys})
    assert spec.hparams == {"lr": 0.1, **keys}
    stock = parse_spec({**MINIMAL, "head_init": "stock", "channels_last": False})
    assert stock == parse_spec(MINIMAL)


@pytest.mark.domainbed
@pytest.mark.parametrize(
    ("name", "runs", "batch_size", "head_init"),
    [
        ("pacs96_pretrained", 24, 8, "linear_probe"),
        ("pacs96_pretrained_trial1", 12, 8, "linear_probe"),
        ("pacs96_pretrained_stock", 12, 8, None),
        ("pacs96_pretrained_pairs", 12, 8, "linear_probe"),
        ("pacs96_single_source", 40, 24, None),
        ("emoji96_pretrained", 24, 8, "linear_probe"),
        ("emoji96_pretrained_trial1", 12, 8, "linear_probe"),
        ("emoji96_single_source", 16, 24, None),
    ],
)
def test_sweeps_of_pretrained_networks(name, runs, batch_size, head_init, domainbed, tmp_path):
    jobs = make_jobs(load_spec(name), tmp_path, "data")
    assert len(jobs) == runs
    for job in jobs:
        hparams = make_hparams(domainbed, job.args)
        networks.check(hparams, "domainbed")
        assert (hparams["featurizer"], hparams["batch_size"]) == ("efficientnet_lite0", batch_size)
        assert hparams.get("head_init") == head_init
    trained = {tuple(sorted({0, 1, 2, 3} - {*job.args["test_envs"]})) for job in jobs}
    assert {len(envs) for envs in trained} == {1 if "single" in name else 2 if "pairs" in name else 3}
    assert len(trained) == (6 if "pairs" in name else 4)
