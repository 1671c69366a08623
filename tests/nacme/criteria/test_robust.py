"""nac_me_robust: what it may not depend on, what it must depend on, and its value by hand."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nacme import Recorder
from nacme.criteria.robust import BINS, NATS, RobustCoverage
from nacme.settings import CoverageSettings
from nacme.states import head_gradients
from nacme.taps import Reading, Taps, untouched

pytestmark = pytest.mark.filterwarnings("ignore::nacme.errors.DegenerateCoverageWarning")

seeds = st.integers(0, 2**32 - 1)


def sample(seed, size=48, width=6, classes=4, scale=4.0):
    """Features, a head and labels drawn at random; features on a grid, so that scaling them does not round."""
    rng = np.random.default_rng(seed)
    features = torch.tensor(rng.integers(-64, 65, (size, width)) / 16, dtype=torch.float32)
    weight = torch.tensor(rng.integers(-64, 65, (classes, width)) * scale / 64, dtype=torch.float32)
    return features, weight, torch.tensor(rng.integers(0, 2, size).astype(bool))


def read(features, weight, positions=1):
    logits = features @ weight.T
    gradients = head_gradients(logits, weight)
    return Reading(logits, {"z": features}, {"z": gradients}, {"z": positions})


def coverage(*splits):
    counter = RobustCoverage()
    for index, (reading, correct) in enumerate(splits):
        counter.update(f"env{index}", reading, correct)
    return counter


@given(seeds)
def test_value_equals_the_definition(seed):
    features, weight, correct = sample(seed)
    counter = coverage((read(features, weight), correct))
    z, w = features.double().numpy(), weight.double().numpy()
    p = np.exp(z @ w.T - (z @ w.T).max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    u = z.shape[1] * z * ((p - 1 / len(w)) @ w)
    states = (0.5 + u / (2 * (NATS + np.abs(u))))[correct.numpy()]
    overlaps = [
        np.minimum(np.histogram(column, BINS, (0, 1))[0] / max(len(states), 1), 1 / BINS).sum()
        for column in states.T
    ]
    # a state on an edge may fall on either side of it: one sample of one neuron
    assert counter.value() == pytest.approx(np.mean(overlaps), abs=2 / max(len(states), 1) / z.shape[1])


@given(seeds, st.integers(2, 5))
def test_every_sample_twice_or_more_changes_nothing(seed, times):
    features, weight, correct = sample(seed)
    once = coverage((read(features, weight), correct))
    again = coverage((read(features.repeat(times, 1), weight), correct.repeat(times)))
    assert again.value() == once.value()
    assert again.occupied_bins() == once.occupied_bins()


@given(seeds, st.integers(-10, 10))
def test_features_times_c_and_head_over_c_changes_nothing(seed, power):
    features, weight, correct = sample(seed)
    c = 2.0**power
    assert coverage((read(features * c, weight / c), correct)).value() == pytest.approx(
        coverage((read(features, weight), correct)).value(), abs=1e-12
    )


@given(seeds, st.floats(0.01, 100))
def test_nor_does_a_factor_that_rounds_beyond_its_rounding(seed, c):
    features, weight, correct = sample(seed, size=400)
    assert coverage((read(features * c, weight / c), correct)).value() == pytest.approx(
        coverage((read(features, weight), correct)).value(), abs=0.01
    )


@given(seeds, st.sampled_from([2, 4, 8]))
def test_width_alone_changes_nothing(seed, parts):
    features, weight, correct = sample(seed)
    split = coverage((read(features.repeat(1, parts), weight.repeat(1, parts) / parts), correct))
    assert split.value() == pytest.approx(coverage((read(features, weight), correct)).value(), abs=1e-12)


@given(seeds, st.integers(1, 47))
def test_batches_and_their_order_change_nothing(seed, cut):
    features, weight, correct = sample(seed)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed % 2**31))
    whole = coverage((read(features, weight), correct))
    counter = RobustCoverage()
    for part in (order[:cut], order[cut:]):
        counter.update("env0", read(features[part], weight), correct[part])
    # a product in another batch may round to another side of an edge
    assert counter.value() == pytest.approx(whole.value(), abs=1 / 24 / 6)


@given(seeds, st.floats(0.01, 10))
def test_it_lies_between_one_bin_and_all_and_takes_the_least_environment(seed, scale):
    a, b = sample(seed, scale=scale), sample(seed + 1, scale=scale)
    splits = [(read(features, weight), correct) for features, weight, correct in (a, b)]
    counter = coverage(*splits)
    alone = [coverage(split).value() for split in splits]
    assert counter.value() == min(alone)
    assert counter.per_env() == dict(zip(("env0", "env1"), alone))
    assert all(1 / BINS - 1e-12 <= value <= 1 for value in alone)


@given(seeds)
def test_it_is_no_function_of_how_many_samples_were_correct(seed):
    features, weight, correct = sample(seed, size=200)
    values = {
        round(coverage((read(features, weight * scale), correct)).value(), 6) for scale in (0.01, 0.25, 1.0, 16.0)
    }
    assert len(values) > 1


@given(seeds, st.integers(16, 256), st.integers(2, 20), st.floats(3, 30))
def test_networks_with_margins_of_a_few_nats_fill_between_3_and_20_bins(seed, width, classes, margin):
    generator = torch.Generator().manual_seed(seed % 2**31)
    features = torch.randn(500, width, generator=generator).relu()
    weight = torch.randn(classes, width, generator=generator)
    logits = features @ weight.T
    weight = weight * (margin / (logits.amax(dim=1) - logits.mean(dim=1)).mean())
    counter = coverage((read(features, weight), torch.ones(500, dtype=torch.bool)))
    assert 3 <= counter.occupied_bins() <= 20


class Maps(nn.Module):
    """A map, its mean over positions and a linear head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).flatten(1))


class Tokens(nn.Module):
    """Tokens of which the mean goes on."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.embed(x).mean(dim=1))


@pytest.mark.parametrize(
    ("model", "layer", "shape"),
    [(Maps, "conv", (1, 4, 4)), (Tokens, "embed", (5, 4)), (Maps, "fc:input", (1, 4, 4))],
)
def test_the_place_of_a_mean_over_positions_changes_nothing(model, layer, shape):
    torch.manual_seed(0)
    net, x, correct = model(), 9 * torch.randn(200, *shape), torch.arange(200) % 3 > 0
    values = []
    for layers in ([layer], None):
        with untouched(net), Taps(net, layers) as taps:
            values.append(coverage((taps.read(x), correct)))
    before, behind = values
    assert before.value() == pytest.approx(behind.value(), abs=2 / 133 / 8)
    assert behind.occupied_bins() > 3


def loader(seed, count=64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    return list(zip(x.split(16), (x[:, :3] + 0.3 * x[:, 3:]).argmax(dim=1).split(16)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def test_the_recorder_counts_each_environment_of_the_splits_that_coverage_is_measured_on(model):
    out, in_ = {"env0_out": loader(1), "env2_out": loader(2)}, {"env0_in": loader(3), "env2_in": loader(4)}
    for loaders, chosen in ((out, {}), (in_, {"coverage_loaders": in_})):
        record = Recorder(model, out, **chosen).record()
        said = record["nac"]["nac_me_robust"]
        assert said["per_env"].keys() == loaders.keys()
        assert record["nac_me_robust"] == min(said["per_env"].values())
        for name, each in loaders.items():
            assert Recorder(model, {name: each}).record()["nac_me_robust"] == said["per_env"][name]
        json.dumps(record, allow_nan=False)


def test_it_moves_with_training_and_is_not_accuracy(model):
    loaders = {"env0": loader(1, 256), "env1": loader(2, 256)}
    recorder, rows = Recorder(model, loaders, criteria=["nac_me_robust"]), []
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(8):
        record = recorder.record()
        rows.append((record["nac_me_robust"], record["nac"]["num_counted"], record["nac"]["nac_me_robust"]))
        for x, y in loaders["env0"] + loaders["env1"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    values = [value for value, _, _ in rows]
    assert len(set(values)) == 8
    assert max(values) > 2 * min(values)
    assert rows[-1][2]["occupied_bins"] > 3


def test_an_environment_without_a_correct_sample_covers_nothing(model):
    wrong = [(x, (model(x).argmax(dim=1) + 1) % 3) for x, _ in loader(1)]
    record = Recorder(model, {"env0": loader(2), "env1": wrong}).record()
    assert record["nac"]["nac_me_robust"]["per_env"]["env1"] == 0
    assert record["nac_me_robust"] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_coverage(model, value):
    with torch.no_grad():
        model[2].weight[0, 0] = value
    record = Recorder(model, {"env0": loader(1)}, settings=CoverageSettings(1.0)).record()
    assert record["nac_me_robust"] is None
    json.dumps(record, allow_nan=False)


def test_memory_does_not_grow_with_samples(model):
    recorder = Recorder(model, {"env0": loader(1), "env1": loader(2)}, criteria=["nac_me_robust"])
    without = Recorder(model, {"env0": loader(1), "env1": loader(2)}, criteria=[])
    assert recorder.memory(10**6, 16) - without.memory(10**6, 16) == 8 * 16 * BINS * 2
