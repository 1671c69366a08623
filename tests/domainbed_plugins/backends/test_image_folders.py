"""Image folders at other sizes: DomainBed's but for the size, the network and the ranges of hyper-parameters."""

import re
from dataclasses import replace

import numpy as np
import pytest
import timm.models.resnet
import torch

from domainbed_plugins import score
from domainbed_plugins.backends import find as backends
from domainbed_plugins.backends import image_folders
from domainbed_plugins.data.splits import make_dataset, make_splits
from domainbed_plugins.sweep.plan import NETWORKS
from nacme.errors import ConfigError
from nacme.settings import CoverageSettings

pytestmark = [pytest.mark.domainbed, pytest.mark.filterwarnings("ignore")]

CLASSES, DOMAINS = 7, 3
#: TRM and RDM call CUDA, Fishr fails with current PyTorch: in stock DomainBed as well (docs/domainbed.md).
FAILING = {"TRM", "RDM", "Fishr"}
LAYER = "featurizer.network.layer3"


def make(testbed, root, name="PACS64", augment=True):
    args = {"dataset": name, "data_dir": str(root), "test_envs": [2]}
    return make_dataset(testbed, args, {"data_augmentation": augment})


def images_of(split):
    """Files and labels of a split, or of the split of a split that a test environment's is."""
    if hasattr(split, "keys"):
        images = images_of(split.underlying_dataset)
        return [images[key] for key in split.keys]
    return split.samples


def defaults(testbed, algorithm="ERM", **changes):
    return {**testbed.hparams_registry.default_hparams(algorithm, "PACS64"), **changes}


def build(testbed, algorithm="ERM", **changes):
    torch.manual_seed(0)
    made = testbed.algorithms.get_algorithm_class(algorithm)
    return made((3, 64, 64), CLASSES, DOMAINS, defaults(testbed, algorithm, **changes))


def test_domainbed_knows_the_data_set_once(domainbed):
    from domainbed import networks

    featurizer = networks.Featurizer
    image_folders.register(domainbed)
    image_folders.add(domainbed, "PACS64")
    assert networks.Featurizer is featurizer
    assert domainbed.datasets.DATASETS.count("PACS64") == 1
    made = domainbed.datasets.get_dataset_class("PACS64")
    assert domainbed.datasets.num_environments("PACS64") == 4
    assert (made.ENVIRONMENTS, made.CHECKPOINT_FREQ) == (["A", "C", "P", "S"], 300)
    assert made.N_WORKERS == domainbed.datasets.PACS.N_WORKERS


@pytest.mark.parametrize(
    ("name", "base", "size"),
    [("PACS50", "PACS", 50), ("OfficeHome96", "OfficeHome", 96), ("EMOJI128", "EMOJI", 128)],
)
def test_any_size_is_made_when_it_is_asked_for(name, base, size, domainbed):
    datasets = backends.find(name).datasets
    assert datasets.DATASETS.count(name) == 1
    assert issubclass(datasets.get_dataset_class(name), getattr(datasets, base))
    assert datasets.num_environments(name) == datasets.num_environments(base) == 4
    assert image_folders.parse(name) == (base, size)


@pytest.mark.parametrize("name", ["PACS", "PACS064x", "RotatedMNIST64", "pacs64", "64"])
def test_other_names_are_left_to_domainbed(name, domainbed):
    assert image_folders.parse(name) is None
    before = list(domainbed.datasets.DATASETS)
    image_folders.add(domainbed, name)
    assert before == domainbed.datasets.DATASETS


@pytest.mark.parametrize("name", ["PACS31", "EMOJI225"])
def test_a_size_out_of_range(name, domainbed):
    with pytest.raises(ConfigError, match=rf"--dataset {name}: images can have 32 to 224 pixels"):
        backends.find(name)


@pytest.mark.data
def test_emoji(domainbed, nacme_data):
    made = make(domainbed, nacme_data / "EMOJI", "EMOJI96")
    assert (made.input_shape, made.num_classes, len(made)) == ((3, 96, 96), 13, 4)
    assert [len(env) for env in made] == [1332, 1343, 1343, 1343]
    assert [env.root.rpartition("/")[2] for env in made] == list(made.ENVIRONMENTS)
    assert make(domainbed, nacme_data / "EMOJI", "EMOJI").input_shape == (3, 224, 224)


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("augment", [True, False])
def test_images_are_stocks_but_for_their_size(domainbed, image_folder, augment, size):
    ours, stock = (make(domainbed, image_folder, name, augment) for name in (f"PACS{size}", "PACS"))
    assert (ours.input_shape, stock.input_shape) == ((3, size, size), (3, 224, 224))
    assert ours.num_classes == stock.num_classes == 2
    for mine, theirs in zip(ours, stock, strict=True):
        assert mine.samples == theirs.samples
        assert repr(mine.transform) == re.sub(r"(?<!\.)224", str(size), repr(theirs.transform))  # not 0.224
        assert mine[0][0].shape == (3, size, size)
    assert ["Random" in repr(env.transform) for env in ours] == [augment, augment, False, augment]


@pytest.mark.data
def test_splits_are_those_of_pacs(domainbed, nacme_data):
    args = {"data_dir": str(nacme_data), "test_envs": [0], "trial_seed": 1, "task": "domain_generalization"}
    args |= {"holdout_fraction": 0.2, "uda_holdout_fraction": 0}
    ours, stock = (
        make_splits(domainbed, {**args, "dataset": name}, defaults(domainbed)) for name in ("PACS64", "PACS")
    )
    assert [len(env) for env in ours.dataset] == [2048, 2344, 1670, 3929]
    assert ours.by_name.keys() == stock.by_name.keys()
    for name, split in ours.by_name.items():
        assert images_of(split) == images_of(stock.by_name[name])


def test_hyper_parameters_are_those_of_small_images(domainbed):
    registry = domainbed.hparams_registry
    assert (defaults(domainbed)["lr"], defaults(domainbed)["data_augmentation"]) == (1e-3, True)
    assert registry.default_hparams("ERM", "PACS")["lr"] == 5e-5
    for algorithm in ("ERM", "Mixup", "DANN", "GReg"):
        drawn = [registry.random_hparams(algorithm, "PACS64", seed) for seed in range(20)]
        assert drawn == [registry.random_hparams(algorithm, "RotatedMNIST", seed) for seed in range(20)]
        assert {hparams["resnet_dropout"] for hparams in drawn} == {0.0, 0.1, 0.5}
        assert max(hparams["lr"] for hparams in drawn) > 10**-3.5  # beyond the range of DomainBed's large images
        assert registry.random_hparams(algorithm, "PACS48", 3) == {**drawn[3], "featurizer": "resnet10"}


def test_hyper_parameters_of_pretrained_networks_are_stocks_but_for_the_small_machine(domainbed):
    registry = domainbed.hparams_registry
    own = {"batch_size": 8, "freeze_bn": True, "featurizer": "efficientnet_lite0"}
    for algorithm in ("ERM", "Mixup", "DANN", "GReg"):
        stock = registry.default_hparams(algorithm, "PACS")
        assert registry.default_hparams(algorithm, "PACS96") == {**stock, **own}
        for seed in range(20):
            ours, stock = (registry.random_hparams(algorithm, name, seed) for name in ("PACS96", "PACS"))
            # the same draw from a narrower range
            where = (np.log10(stock["lr"]) + 5) / 1.5
            assert ours["lr"] == pytest.approx(10 ** (-4.5 + where))
            assert ours == {**stock, **own, "lr": ours["lr"]}


def test_the_network_is_as_large_as_plans_say(domainbed):
    algorithm = build(domainbed).eval()
    flop = 0

    def count(module, inputs, output):
        nonlocal flop
        flop += 2 * module.weight[0].numel() * output[0].numel()

    for module in algorithm.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    stages = []
    for i in (1, 2, 3, 4):
        stage = algorithm.get_submodule(f"featurizer.network.layer{i}")
        stage.register_forward_hook(lambda module, inputs, output: stages.append(tuple(output.shape[1:])))
    assert algorithm.featurizer(torch.rand(2, 3, 64, 64)).shape == (2, algorithm.featurizer.n_outputs) == (2, 256)
    assert stages == [(32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]
    network = NETWORKS["ResNet-10 at 64 px"]
    assert flop / 1e9 == pytest.approx(network.gflop, rel=0.01)
    weights = sum(tensor.nbytes for tensor in algorithm.state_dict().values())  # twice: featurizer and network
    assert weights / 2e6 == pytest.approx(network.megabytes, rel=0.02)


def test_dropout_acts_on_features_and_batch_normalization_is_never_frozen(domainbed):
    algorithm = build(domainbed, resnet_dropout=0.5, freeze_bn=True)
    x = torch.rand(8, 3, 64, 64)
    algorithm.train()
    assert all(m.training for m in algorithm.modules() if isinstance(m, torch.nn.BatchNorm2d))
    dropped = (algorithm.featurizer(x) == 0).float().mean()
    algorithm.eval()
    assert dropped > 0.4
    assert (algorithm.featurizer(x) == 0).float().mean() < 0.2


def test_other_sizes_have_stocks_networks(domainbed):
    from domainbed import networks

    assert type(networks.Featurizer((1, 28, 28), defaults(domainbed))) is networks.MNIST_CNN
    with pytest.raises(NotImplementedError):
        networks.Featurizer((3, 65, 65), defaults(domainbed))


def test_an_old_timm_is_named(domainbed, monkeypatch):
    monkeypatch.setattr(timm.models.resnet, "ResNet", lambda block, layers, num_classes, in_chans: None)
    with pytest.raises(ConfigError, match=r"timm \S+ is too old \(.*channels.*pip install 'timm>=1.0.8'"):
        build(domainbed)


@pytest.mark.slow
def test_every_algorithm_takes_a_step(domainbed, capsys):
    batches = [(torch.rand(8, 3, 64, 64), torch.randint(CLASSES, (8,))) for _ in range(DOMAINS)]
    for name in domainbed.algorithms.ALGORITHMS:
        if name in FAILING:
            continue
        # with DomainBed's default of 1, SANDMask masks every gradient
        algorithm = build(domainbed, name, **({"tau": 0.5} if name == "SANDMask" else {}))
        before = [parameter.clone() for parameter in algorithm.parameters()]
        assert all(np.isfinite(value) for value in algorithm.update(batches).values()), name
        assert not all(map(torch.equal, before, algorithm.parameters())), name
        algorithm.eval()
        assert algorithm.predict(torch.rand(4, 3, 64, 64)).shape == (4, CLASSES), name


@pytest.mark.slow
@pytest.mark.usefixtures("domainbed")
def test_trains_records_resumes_and_is_scored(image_folder, tmp_path, train_run, crash, records, read_records):
    flags = ["--dataset", "PACS64", "--data_dir", str(image_folder), "--test_envs", "2", "--steps", "31"]
    flags += ["--checkpoint_freq", "10", "--save_model_every_checkpoint"]
    flags += ["--hparams", '{"batch_size": 8, "data_augmentation": false}']
    settings = CoverageSettings(1.0, 50, 2)
    options = {"settings": settings, "grid": (replace(settings, layer=LAYER),), "n_workers": 0}
    train_run(tmp_path / "sweep" / "run", *flags, **options)
    with pytest.raises(crash.error):
        train_run(tmp_path / "resumed", *flags, after={15: crash}, **options)
    train_run(tmp_path / "resumed", *flags, **options)
    assert read_records(tmp_path / "resumed") == read_records(tmp_path / "sweep" / "run")

    in_run = records(tmp_path / "sweep" / "run")
    assert in_run[-1]["env0_out_acc"] == 1.0
    assert in_run[-1]["val_loss"] < in_run[0]["val_loss"]
    key = next(key for key in in_run[0] if key.endswith("_at_featurizer_network_layer3"))
    assert all(0 < record[key] <= 1 for record in in_run)

    score.score(tmp_path / "sweep", str(image_folder), score.ScoreOptions(settings))
    post_hoc = records(tmp_path / "sweep" / "run", "nac.jsonl")
    for name in ("nac_me", "val_loss"):
        assert [record[name] for record in post_hoc] == pytest.approx([r[name] for r in in_run], abs=1e-6)
