"""lodo_probe equals scikit-learn's ridge regression, whichever system is solved, or is undefined."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from nacme import Recorder
from nacme.criteria.lodo import STRENGTHS, lodo_probe
from nacme.criteria.network import Collected
from nacme.criteria.registry import get_criterion


def collected(width, sizes=(30, 40, 25), classes=3, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    names = [f"env{i}_out" for i in range(len(sizes))]
    features = {
        n: torch.tensor(scale * rng.normal(i, 1, (m, width)), dtype=torch.float32)
        for i, (n, m) in enumerate(zip(names, sizes))
    }
    labels = {n: torch.tensor(rng.integers(0, classes, m)) for n, m in zip(names, sizes)}
    for n in names:  # something to learn
        features[n][:, 0] += scale * labels[n]
    return Collected(nn.Identity(), dict.fromkeys(names, torch.zeros(0)), labels, features, {})


@pytest.mark.parametrize("width", [5, 200])
def test_equals_scikit_learn(width):
    data = collected(width)
    accuracies = []
    for left_out in data.features:
        x = torch.cat([v for n, v in data.features.items() if n != left_out]).double().numpy()
        y = np.eye(3)[torch.cat([v for n, v in data.labels.items() if n != left_out]).numpy()]
        unit = ((x - x.mean(axis=0)) ** 2).sum() / min(x.shape)
        for strength in STRENGTHS:
            ridge = Ridge(alpha=strength * unit, solver="svd").fit(x, y)
            found = ridge.predict(data.features[left_out].double().numpy()).argmax(axis=1)
            accuracies.append((found == data.labels[left_out].numpy()).mean())
    assert lodo_probe(data) == pytest.approx(np.mean(accuracies), abs=1e-12)


def test_scale_of_the_features_plays_no_part():
    assert lodo_probe(collected(8, scale=1e-3)) == lodo_probe(collected(8)) == lodo_probe(collected(8, scale=1e3))


def test_features_that_tell_the_class_everywhere_score_one():
    labels = {f"env{i}": torch.arange(30) % 3 for i in range(3)}
    features = {name: nn.functional.one_hot(y, 3).float() for name, y in labels.items()}
    assert lodo_probe(Collected(nn.Identity(), labels, labels, features, {})) == 1.0


def test_undefined_where_nothing_can_be_said():
    assert math.isnan(lodo_probe(collected(4, sizes=(30,))))
    constant = collected(4)
    assert math.isnan(
        lodo_probe(
            Collected(constant.model, {}, constant.labels, {n: 0 * v for n, v in constant.features.items()}, {})
        )
    )
    assert math.isnan(
        lodo_probe(
            Collected(constant.model, {}, constant.labels, {n: v / 0 for n, v in constant.features.items()}, {})
        )
    )


def test_recorded_when_named_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    loaders = {f"env{i}": [(torch.randn(20, 4), torch.randint(3, (20,)))] for i in range(2)}
    assert 0 <= Recorder(model, loaders, criteria=["lodo_probe"]).record()["lodo_probe"] <= 1
    assert "lodo_probe" not in Recorder(model, loaders).record()
    assert "linear system" in get_criterion("lodo_probe").cost
