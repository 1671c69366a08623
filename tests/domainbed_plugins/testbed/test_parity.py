"""The testbed against DomainBed itself: same weights, same minibatches, same seeds, same results."""

from __future__ import annotations

import importlib
import os
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from domainbed_plugins.data.streams import TrainStream
from domainbed_plugins.testbed import algorithms, hparams_registry, networks
from domainbed_plugins.testbed.lib import misc

pytestmark = [
    pytest.mark.domainbed,
    pytest.mark.skipif("DOMAINBED_ROOT" not in os.environ, reason="DOMAINBED_ROOT is not set"),
    pytest.mark.filterwarnings("ignore"),
]

SHAPE, CLASSES, DOMAINS = (1, 16, 16), 4, 3


@pytest.fixture
def domainbed(monkeypatch):
    monkeypatch.setattr(sys, "path", [os.environ["DOMAINBED_ROOT"], *sys.path])
    return lambda name: importlib.import_module(f"domainbed.{name}")


def minibatches(seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(8, *SHAPE, generator=generator), torch.randint(CLASSES, (8,), generator=generator))
        for _ in range(DOMAINS)
    ]


def seeded_updates(algorithm, count):
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002
    return [algorithm.update(minibatches(step)) for step in range(count)]


OVERRIDES = {
    "IRM": {"irm_penalty_anneal_iters": 3, "irm_lambda": 5.0},
    "VREx": {"vrex_penalty_anneal_iters": 3, "vrex_lambda": 5.0},
    "GroupDRO": {"groupdro_eta": 0.3},
}


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_updates_equal_domainbeds(name, domainbed, monkeypatch):
    theirs_module = domainbed("algorithms")
    monkeypatch.setattr(theirs_module.networks, "Featurizer", networks.Featurizer)
    hparams = hparams_registry.default_hparams(name, "RotatedDigits") | {"lr": 1e-3, "weight_decay": 1e-4}
    hparams |= OVERRIDES.get(name, {})
    ours = algorithms.get_algorithm_class(name)(SHAPE, CLASSES, DOMAINS, hparams)
    theirs = theirs_module.get_algorithm_class(name)(SHAPE, CLASSES, DOMAINS, hparams)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if k != "q"}, strict=False)

    for our_values, their_values in zip(seeded_updates(ours, 6), seeded_updates(theirs, 6)):
        assert our_values == pytest.approx(their_values, rel=2e-3, abs=1e-6)
    x = minibatches(99)[0][0]
    torch.testing.assert_close(ours.predict(x), theirs.predict(x), rtol=2e-3, atol=2e-3)
    if name == "GroupDRO":
        torch.testing.assert_close(ours.q, theirs.q)


def test_seeds_splits_weights_and_rows_equal_domainbeds(domainbed, capsys):
    theirs = domainbed("lib.misc")
    for args in [(0, 0), (1, "lr"), (3, 0.5, None), ("x",), ()]:
        assert misc.seed_hash(*args) == theirs.seed_hash(*args)

    labels = torch.randint(5, (53,), generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(torch.arange(53).float(), labels)
    for seed in (0, 1, misc.seed_hash(2, 3)):
        for ours_part, their_part in zip(
            misc.split_dataset(dataset, 10, seed), theirs.split_dataset(dataset, 10, seed)
        ):
            assert [int(x) for x, _ in ours_part] == [int(x) for x, _ in their_part]
    torch.testing.assert_close(
        misc.make_weights_for_balanced_classes(dataset), theirs.make_weights_for_balanced_classes(dataset)
    )
    for latex in (False, True):
        row = ["step", 3, 0.123456789012, np.float32(0.5), None, "a name that is too long"]
        misc.print_row(row, colwidth=12, latex=latex)
        ours_line = capsys.readouterr().out
        theirs.print_row(row, colwidth=12, latex=latex)
        assert ours_line == capsys.readouterr().out


def test_random_hparams_that_share_a_range_equal_domainbeds(domainbed):
    theirs = domainbed("hparams_registry")
    for name, key in [("Mixup", "mixup_alpha"), ("GroupDRO", "groupdro_eta"), ("CORAL", "mmd_gamma")]:
        for seed in (1, 2):
            assert (
                hparams_registry.random_hparams(name, "RotatedDigits", seed)[key]
                == theirs.random_hparams(name, "RotatedMNIST", seed)[key]
            )


@pytest.mark.parametrize("weighted", [False, True])
def test_training_minibatches_equal_domainbeds(weighted, domainbed):
    theirs = domainbed("lib.fast_data_loader")
    dataset = TensorDataset(torch.arange(23), torch.arange(23) % 3)
    weights = misc.make_weights_for_balanced_classes(dataset) if weighted else None
    drawn = []
    for make in (TrainStream, theirs.InfiniteDataLoader):
        torch.manual_seed(4)
        loaders = [make(dataset, weights, 5, 0) for _ in range(2)]
        stream = zip(*loaders)
        drawn.append([[x.tolist() for x, _ in next(stream)] for _ in range(20)])
    assert drawn[0] == drawn[1]
