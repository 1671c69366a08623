"""That the parts fit together, and that the defaults train a network worth selecting from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from domainbed_plugins.data.streams import EvalStream, TrainStream
from domainbed_plugins.testbed import algorithms, datasets, hparams_registry
from domainbed_plugins.testbed.lib import misc


def accuracy(algorithm, split):
    with torch.no_grad():
        hits = [algorithm.predict(x).argmax(1) == y for x, y in EvalStream(split, 64, 0)]
    return float(torch.cat(hits).float().mean())


def train(dataset_name, algorithm_name, test_env, hparams, steps=None):
    """Train as DomainBed does: accuracy on the held-out splits of the training envs, and on the test env."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    dataset = datasets.get_dataset_class(dataset_name)(None, [test_env], hparams)
    splits = [misc.split_dataset(env, len(env) // 5, misc.seed_hash(0, i)) for i, env in enumerate(dataset)]
    train_envs = [i for i in range(len(dataset)) if i != test_env]
    loaders = [TrainStream(splits[i][1], None, hparams["batch_size"], dataset.N_WORKERS) for i in train_envs]
    algorithm = algorithms.get_algorithm_class(algorithm_name)(
        dataset.input_shape, dataset.num_classes, len(train_envs), hparams
    )
    for _, batches in zip(range(steps or dataset.N_STEPS), zip(*loaders)):
        algorithm.update(batches)
    validation = np.mean([accuracy(algorithm, splits[i][0]) for i in train_envs])
    return float(validation), accuracy(algorithm, splits[test_env][1])


@pytest.mark.slow
@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_default_hparams_learn_the_rotated_digits(name):
    validation, test = train("RotatedDigits", name, 0, hparams_registry.default_hparams(name, "RotatedDigits"))
    assert validation > 0.9
    assert 0.5 < test < validation  # the outermost angle is hard, and not hopeless


def test_erm_relies_on_the_colour_that_misleads():
    hparams = hparams_registry.default_hparams("ERM", "ColoredDigits")
    validation, test = train("ColoredDigits", "ERM", 2, hparams, steps=60)
    assert validation > 0.75
    assert test < 0.4


def test_the_defaults_give_enough_checkpoints_to_select_from():
    for name in datasets.DATASETS:
        dataset = datasets.get_dataset_class(name)
        steps = set(range(0, dataset.N_STEPS, dataset.CHECKPOINT_FREQ)) | {dataset.N_STEPS - 1}
        assert len(steps) >= 11


def test_a_run_repeats_exactly():
    hparams = hparams_registry.random_hparams("Mixup", "RotatedDigits", 1)
    first = train("RotatedDigits", "Mixup", 3, hparams, steps=5)
    assert first == train("RotatedDigits", "Mixup", 3, hparams, steps=5)
