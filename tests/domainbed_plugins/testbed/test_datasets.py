from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from torch.nn import functional as F

from domainbed_plugins.testbed import datasets

ROTATED_LABELS = [
    [6, 8, 6, 1, 5, 3, 2, 4],
    [5, 4, 8, 2, 3, 7, 0, 7],
    [5, 6, 3, 5, 4, 3, 6, 2],
    [7, 8, 2, 9, 2, 5, 0, 5],
    [9, 6, 2, 8, 8, 4, 6, 5],
    [9, 0, 3, 7, 2, 2, 3, 5],
]
ROTATED_MEANS = [0.1713116, 0.173489, 0.1714511, 0.1719598, 0.1701524, 0.17113]
COLOURED_LABELS = [
    [0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0],
    [0, 1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0],
    [0, 0, 1, 0, 0, 1, 0, 1, 1, 1, 0, 1],
]
COLOURED_MEANS = [0.0859213, 0.0859506, 0.0856915]
COUNTS = {"RotatedDigits": [300, 300, 300, 299, 299, 299], "ColoredDigits": [599, 599, 599]}


def build(name):
    return datasets.get_dataset_class(name)(None, [0], {})


def tensors(dataset):
    return [env.tensors for env in dataset]


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_environments_hold_all_digits_in_the_declared_shape(name):
    dataset = build(name)
    assert len(dataset) == datasets.num_environments(name) == len(dataset.ENVIRONMENTS)
    assert [len(env) for env in dataset] == COUNTS[name]
    for env in dataset:
        x, y = env.tensors
        assert x.shape[1:] == dataset.input_shape == dataset.INPUT_SHAPE
        assert x.dtype == torch.float32
        assert x.min() >= 0
        assert x.max() <= 1
        assert y.dtype == torch.int64
        assert y.unique().tolist() == list(range(dataset.num_classes))
    x, y = dataset[1][0]
    assert x.shape == dataset.input_shape
    assert y.shape == ()
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_environments_do_not_depend_on_the_seed_of_the_run_nor_touch_it(name):
    torch.manual_seed(1)
    first = tensors(build(name))
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    for a, b in zip(first, tensors(build(name))):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_environments_stay_what_they_were_when_checkpoints_were_written():
    """Constants from the first release: a change here makes old checkpoints' splits leak into one another."""
    rotated, coloured = build("RotatedDigits"), build("ColoredDigits")
    assert [env.tensors[1][:8].tolist() for env in rotated] == ROTATED_LABELS
    assert [env.tensors[1][:12].tolist() for env in coloured] == COLOURED_LABELS
    np.testing.assert_allclose([float(env.tensors[0].mean()) for env in rotated], ROTATED_MEANS, rtol=1e-4)
    np.testing.assert_allclose([float(env.tensors[0].mean()) for env in coloured], COLOURED_MEANS, rtol=1e-4)


def test_rotated_digits_are_scikit_learns_each_with_its_label():
    dataset = build("RotatedDigits")
    digits = load_digits()
    target = torch.as_tensor(digits.target)
    assert torch.equal(torch.cat([env.tensors[1] for env in dataset]).bincount(), target.bincount())
    # The first environment is not turned. Its images, shrunk to 8x8 again, are blurred scans: nearly all have
    # their own scan as the nearest one, and all a scan of the same digit.
    x, y = dataset[0].tensors
    small = F.interpolate(x[:, :, 2:-2, 2:-2], size=(8, 8), mode="area").flatten(1)
    scans = torch.as_tensor(digits.images, dtype=torch.float32).flatten(1) / 16
    nearest = torch.cdist(small, scans).argmin(1)
    assert len(nearest.unique()) >= 0.95 * len(y)
    assert (target[nearest] == y).float().mean() >= 0.99


def test_rotated_digits_are_turned_by_the_angle_that_names_the_environment():
    """Mean images are turned digits of one mean: turning the first one by the angle matches best there."""
    dataset = build("RotatedDigits")
    means = []
    for env in dataset:
        x, y = env.tensors
        means.append(torch.stack([x[y == digit].mean(0)[0] for digit in range(10)]).numpy())
    angles = np.arange(-90, 91, 15)
    for angle, mean in zip(dataset.ENVIRONMENTS, means):
        turned = [rotate(means[0], a, axes=(2, 1), reshape=False, order=1) for a in angles]
        best = angles[np.argmin([np.square(t - mean).mean() for t in turned])]
        assert best == int(angle)


def test_coloured_digits_correlate_colour_with_the_label_as_the_environments_say():
    agreement = []
    for env in build("ColoredDigits"):
        x, y = env.tensors
        drawn = x.flatten(2).sum(2) > 0
        assert torch.equal(drawn.sum(1), torch.ones(len(x), dtype=torch.int64))  # one channel only
        agreement.append(float((drawn[:, 1].long() == y).float().mean()))
    np.testing.assert_allclose(agreement, [0.9, 0.8, 0.1], atol=0.04)


def test_coloured_digits_flip_a_quarter_of_the_labels():
    coloured = build("ColoredDigits")
    # The same permutation deals the digits to the environments of both datasets.
    flipped = []
    digits = torch.empty(1797, dtype=torch.int64)
    for i, env in enumerate(build("RotatedDigits")):
        digits[i::6] = env.tensors[1]
    for i, env in enumerate(coloured):
        flipped.append(float(((digits[i::3] < 5).long() != env.tensors[1]).float().mean()))
    np.testing.assert_allclose(flipped, 0.25, atol=0.05)


def test_an_unknown_name_is_refused():
    with pytest.raises(NotImplementedError, match="NoSuchSet"):
        datasets.get_dataset_class("NoSuchSet")
