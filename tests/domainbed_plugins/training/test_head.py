"""Where classifiers start: the same for all runs of a trial, and nothing but their values changes."""

import json

import pytest
import torch

from domainbed_plugins.backends import find as backends
from domainbed_plugins.backends.arguments import STOCK_FLAGS, make_hparams, with_network
from domainbed_plugins.data.generators import seed_everything
from domainbed_plugins.data.splits import make_splits
from domainbed_plugins.data.streams import collate
from domainbed_plugins.train import main, parser
from domainbed_plugins.training import head
from nacme.errors import ConfigError

RUN = ["--dataset", "RotatedDigits", "--test_envs", "0", "--steps", "4", "--checkpoint_freq", "2"]


class Start:
    """A run up to its first step."""

    def __init__(self, kind="stock", *flags):
        given = parser().parse_args([*RUN, *flags])
        args = {name: getattr(given, name) for name in STOCK_FLAGS}
        args["hparams"] = with_network(given.hparams, {"head_init": kind})
        self.testbed = backends.find(args["dataset"])
        self.hparams = make_hparams(self.testbed, args)
        seed_everything(args["seed"])
        self.splits = make_splits(self.testbed, args, self.hparams)
        make = self.testbed.algorithms.get_algorithm_class(args["algorithm"])
        data = self.splits.dataset
        self.algorithm = make(data.input_shape, data.num_classes, len(data) - len(args["test_envs"]), self.hparams)
        head.initialize(self.algorithm, args, self.hparams, self.splits, self.testbed)
        self.drawn_next = torch.rand(4)

    def classifier(self):
        return self.algorithm.classifier.weight, self.algorithm.classifier.bias


def same(a, b):
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("kind", ["shared", "linear_probe"])
def test_nothing_but_the_classifiers_values_changes(kind):
    stock, other = Start(), Start(kind)
    assert torch.equal(stock.drawn_next, other.drawn_next)
    theirs, ours = stock.algorithm.state_dict(), other.algorithm.state_dict()
    changed = {key for key in theirs if not torch.equal(theirs[key], ours[key])}
    assert changed == {f"{part}.{key}" for part in ("classifier", "network.1") for key in ("weight", "bias")}
    assert all(module.training for module in other.algorithm.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in other.algorithm.parameters())


def test_a_shared_classifier_depends_on_the_trial_alone():
    one = Start("shared")
    for flags in (["--seed", "5"], ["--hparams_seed", "3"], ["--algorithm", "CORAL"], ["--test_envs", "2"]):
        assert same(one.classifier(), Start("shared", *flags).classifier()), flags
    assert not same(one.classifier(), Start("shared", "--trial_seed", "1").classifier())
    weight, bias = one.classifier()
    bound = 64**-0.5  # as nn.Linear draws
    for drawn in (weight, bias):
        assert 0.7 * bound < drawn.abs().max() <= bound
        assert drawn.mean().abs() < bound / 2


def test_a_linear_probe_is_fitted_to_the_features_of_the_training_environments():
    probe, shared = Start("linear_probe"), Start("shared")
    features, labels = [], []
    probe.algorithm.eval()
    with torch.no_grad():
        for _, split, _ in probe.splits.train:
            x, y = collate(split, list(range(len(split))))
            features.append(probe.algorithm.featurizer(x)), labels.append(y)
    features, labels = torch.cat(features), torch.cat(labels)
    weight, bias = (tensor.detach().clone().requires_grad_() for tensor in shared.classifier())
    optimizer = torch.optim.Adam([weight, bias], lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(features @ weight.T + bias, labels).backward()
        optimizer.step()
    torch.testing.assert_close(probe.algorithm.classifier.weight, weight, rtol=1e-3, atol=1e-4)
    losses = [
        torch.nn.functional.cross_entropy(start.algorithm.classifier(features), labels)
        for start in (probe, shared)
    ]
    assert losses[0] < losses[1] - 0.05


def test_stock_is_domainbeds_own(tmp_path):
    """Asking for the default leaves arguments, hyper-parameters and numbers as they are."""
    records = []
    for name, flags in (("plain", []), ("asked", ["--head_init", "stock"])):
        main([*RUN, *flags, "--output_dir", str(tmp_path / name)])
        lines = (tmp_path / name / "results.jsonl").read_text().splitlines()
        records.append([json.loads(line) for line in lines])
        for record in records[-1]:
            del record["step_time"], record["args"]["output_dir"]
    assert records[0] == records[1]


def test_it_is_recorded_and_resumed_to_the_last_digit(tmp_path, train_run, crash, read_records, records):
    flags = [*RUN, "--hparams", '{"head_init": "linear_probe"}']
    train_run(tmp_path / "whole", *flags)
    with pytest.raises(crash.error):
        train_run(tmp_path / "cut", *flags, after={2: crash})
    train_run(tmp_path / "cut", *flags)
    assert read_records(tmp_path / "whole") == read_records(tmp_path / "cut")
    assert records(tmp_path / "whole")[0]["hparams"]["head_init"] == "linear_probe"
    train_run(tmp_path / "stock", *RUN)
    first = [records(tmp_path / name)[0]["val_loss"] for name in ("whole", "stock")]
    assert first[0] < first[1] - 0.01  # after the first step

    with pytest.raises(crash.error):
        train_run(tmp_path / "other", *flags, after={2: crash})
    with pytest.raises(ConfigError, match=r"was begun with hparams = .*linear_probe"):
        train_run(tmp_path / "other", *RUN, "--hparams", '{"head_init": "shared"}')


def test_flags_and_hyper_parameters_are_one():
    assert with_network(None, {"head_init": None, "channels_last": False}) is None
    assert with_network(None, {"head_init": "stock"}) is None
    assert with_network('{"lr":  1}', {"head_init": "stock"}) == '{"lr":  1}'  # as it was written
    assert json.loads(with_network('{"lr": 1}', {"featurizer": "resnet10"})) == {"lr": 1, "featurizer": "resnet10"}
    assert with_network('{"head_init": "shared"}', {"head_init": "stock"}) == "{}"


def test_a_nonlinear_classifier_is_refused():
    with pytest.raises(ConfigError, match=r"--head_init shared: ERM has no linear classifier .*leave it at stock"):
        Start("shared", "--hparams", '{"nonlinear_classifier": true}')


@pytest.mark.domainbed
@pytest.mark.filterwarnings("ignore")
class TestWithDomainBed:
    @pytest.mark.parametrize("name", ["Fish", "SagNet", "MTL", "ADRMX"])
    def test_algorithms_of_another_make_are_refused(self, name, domainbed):
        with pytest.raises(ConfigError, match=f"--head_init shared: {name} has no linear classifier"):
            Start("shared", "--dataset", "Debug28", "--algorithm", name, "--hparams", '{"batch_size": 4}')

    def test_a_featurizer_that_takes_more_than_images_is_refused(self, domainbed):
        flags = ["--dataset", "Debug28", "--algorithm", "ARM", "--hparams", '{"batch_size": 4}']
        with pytest.raises(ConfigError, match="ARM's featurizer does not take images alone"):
            Start("linear_probe", *flags)
        Start("shared", *flags)

    @pytest.mark.parametrize("name", ["ERM", "DANN", "VREx", "MLDG", "ERMPlusPlus", "Transfer"])
    def test_copies_of_the_classifier_start_there_too(self, name, domainbed):
        flags = ["--dataset", "Debug28", "--algorithm", name, "--hparams", '{"batch_size": 4}']
        before, after = Start("stock", *flags), Start("shared", *flags)
        assert torch.equal(before.drawn_next, after.drawn_next)
        old, new = (dict(start.algorithm.named_parameters()) for start in (before, after))
        copies = [key for key in old if torch.equal(old[key], before.algorithm.classifier.weight)]
        assert copies
        assert all(torch.equal(new[key], after.algorithm.classifier.weight) for key in copies)

    def test_images_are_read_without_augmentation(self, domainbed, image_folder):
        flags = ["--dataset", "PACS64", "--data_dir", str(image_folder), "--test_envs", "2"]
        starts = [
            Start("linear_probe", *flags, "--hparams", json.dumps({"batch_size": 4, "data_augmentation": augment}))
            for augment in (True, False)
        ]
        assert same(*(start.classifier() for start in starts))
        augmented = starts[0].splits.train[0][1].underlying_dataset
        assert "RandomResizedCrop" in repr(augmented.transform)  # training goes on with it

    def test_all_runs_of_a_trial_start_at_one_place_where_the_network_is_pretrained(self, domainbed, image_folder):
        flags = ["--dataset", "PACS96", "--data_dir", str(image_folder), "--test_envs", "2"]
        one = Start("linear_probe", *flags).algorithm.state_dict()
        for other in (["--seed", "5", "--hparams_seed", "3"], ["--algorithm", "CORAL"]):
            assert same(one.values(), Start("linear_probe", *flags, *other).algorithm.state_dict().values())
        apart = Start("linear_probe", *flags, "--trial_seed", "1").algorithm.state_dict()
        changed = {key for key in one if not torch.equal(one[key], apart[key])}
        assert changed == {f"{part}.{key}" for part in ("classifier", "network.1") for key in ("weight", "bias")}
