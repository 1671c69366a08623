"""The detectors on pytorch-ood's interface: what a user relies on, and what bad input says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nacme
from nacme.errors import ConfigError, LayerError, NacmeError, NacmeWarning
from nacme.ood import functional as OF

pytest.importorskip("pytorch_ood")

from pytorch_ood.api import Detector, ModelNotSetException, RequiresFittingException

from nacme.ood import NACUE, NAP, LINe

GOLDEN = Path(__file__).parents[2] / "golden"
CLASSES = 3


class Net(nn.Module):
    """Small enough to follow by hand; dropout and batch norm so that the mode matters."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.conv2(self.norm(self.conv1(x)).relu()).relu()
        return self.fc(self.drop(self.pool(x).flatten(1)))


class Algorithm(nn.Module):
    """Predicts as DomainBed's algorithms do."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def predict(self, x):
        return self.net(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def data():
    torch.manual_seed(1)
    y = torch.arange(60) % CLASSES
    return [(torch.rand(20, 1, 6, 6) + y[i : i + 20, None, None, None], y[i : i + 20]) for i in (0, 20, 40)]


def build(kind, model, **settings):
    return {"NACUE": lambda: NACUE(model, fill=5, **settings), "LINe": lambda: LINe(model, **settings)}.get(
        kind, lambda: NAP(model, **settings)
    )()


ALL = pytest.mark.parametrize("kind", ["NACUE", "LINe", "NAP"])


@ALL
def test_interface_and_scores(kind, net, data):
    detector = build(kind, net)
    assert isinstance(detector, Detector)
    assert detector.fit(data) is detector
    x = data[0][0]
    scores = detector.predict(x)
    assert scores.shape == (20,)
    assert scores.isfinite().all()
    assert not scores.requires_grad
    torch.testing.assert_close(detector(x), scores)
    torch.testing.assert_close(detector.predict(x[:1]), scores[:1], rtol=1e-4, atol=1e-5)
    assert detector.get_hyperparameters().keys() == detector.hyperparameter_space.keys()


@ALL
def test_the_model_is_left_as_it_was(kind, net, data):
    net.train()
    net.norm.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    detector = build(kind, net).fit(data)
    torch.manual_seed(7)
    detector.predict(data[0][0])
    drawn = torch.rand(())
    torch.manual_seed(7)
    assert drawn == torch.rand(())
    assert net.training
    assert net.drop.training
    assert not net.norm.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@ALL
def test_domainbed_algorithms_serve_as_models(kind, net, data):
    plain, wrapped = build(kind, net).fit(data), build(kind, Algorithm(net)).fit(data)
    torch.testing.assert_close(plain.predict(data[0][0]), wrapped.predict(data[0][0]))


@ALL
def test_negative_labels_are_not_fitted(kind, net, data):
    strange = [(100 * torch.ones_like(x), torch.full_like(y, -1)) for x, y in data]
    expected = build(kind, net).fit(data).predict(data[0][0])
    torch.testing.assert_close(build(kind, net).fit([*data, *strange]).predict(data[0][0]), expected)
    if kind != "NAP":
        with pytest.raises(NacmeError, match="no in-distribution sample"):
            build(kind, net).fit(strange)


@ALL
def test_nan_images_are_one_clear_error(kind, net, data):
    detector = build(kind, net).fit(data)
    x = data[0][0].clone()
    x[[3, 5], 0, 0, 0] = torch.nan
    with pytest.raises(NacmeError, match=r"2 of 20 images hold NaN .* at position 3") as error:
        detector.predict(x)
    assert "\n" not in str(error.value)
    if kind != "NAP":
        with pytest.raises(NacmeError, match="hold NaN"):
            build(kind, net).fit([(x, data[0][1])])


@ALL
def test_without_model_or_fit(kind, net, data):
    if kind != "NAP":
        with pytest.raises(RequiresFittingException):
            build(kind, net).predict(data[0][0])
        with pytest.raises(ModelNotSetException):
            build(kind, None).fit(data)
    else:
        with pytest.raises(ModelNotSetException):
            build(kind, None).predict(data[0][0])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("NACUE", {"layers": ["conv3"]}), ("LINe", {"head": "fc1"}), ("NAP", {"layer": "conv3"})],
)
def test_a_layer_that_is_not_there(kind, settings, net, data):
    with pytest.raises(LayerError, match=r"no layer .* did you mean '(conv|fc)"):
        build(kind, net, **settings).fit(data).predict(data[0][0])


def test_nacue_is_the_mean_over_layers_of_the_coverage_of_states(net, data):
    alpha, bins = {"conv2": 0.5, "pool": 50.0}, {"conv2": 50, "pool": 20}
    detector = NACUE(net, ["conv2", "pool"], alpha=alpha, bins=bins, fill=5).fit(data)
    x = torch.cat([x for x, _ in data])
    net.eval()
    found = []
    for layer in ("conv2", "pool"):
        kept = []
        handle = net.get_submodule(layer).register_forward_hook(lambda *a, kept=kept: kept.append(a[2]))
        logits = net(x)
        handle.remove()
        (gradient,) = nacme.kl_gradients(logits, kept)
        states = nacme.neuron_states(kept[0].detach(), gradient, alpha[layer])
        coverage = nacme.NeuronActivationCoverage(states.shape[1], bins[layer], fill=5, spacing="log")
        coverage.update(states)
        found.append(coverage.likelihood(states[:20]))
        mean = OF.nac_ue_mean(states, states[:20], bins[layer], 5)
        assert mean == pytest.approx(float(found[-1].mean()), abs=1e-6)
    # a gradient that passes through other kernels may put a state on the other side of an edge
    gap = (detector.predict(x[:20]) + torch.stack(found).mean(0)).abs()
    assert gap.max() < 0.05
    assert gap.median() < 1e-6


@pytest.mark.parametrize("name", ["nac_ue_01", "nac_ue_02"])
@pytest.mark.parametrize("group", ["plain", "edge"])
def test_nacue_scores_are_the_authors(name, group):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        golden = {key: torch.from_numpy(np.array(file[key])) for key in file.files}
    settings = {f"l{j}": golden[f"l{j}_M_O"].tolist() for j in (0, 1)}
    detector = NACUE(
        bins={layer: m for layer, (m, _) in settings.items()},
        fill={layer: o for layer, (_, o) in settings.items()},
    )
    detector.fit_structured({layer: golden[f"{group}_fit_{layer}_state"] for layer in settings})
    for layer in settings:
        counts = golden[f"{group}_{layer}_t_act"].T.long()
        assert torch.equal(detector.coverage[layer].counts, counts)
        one = detector.coverage[layer].likelihood(golden[f"{group}_test_{layer}_state"])
        np.testing.assert_allclose(one, golden[f"{group}_{layer}_score"], rtol=0, atol=1e-6)
    scores = detector.predict_structured({layer: golden[f"{group}_test_{layer}_state"] for layer in settings})
    np.testing.assert_allclose(-scores, golden[f"{group}_score_2layer"], rtol=0, atol=1e-6)
    if group == "plain":
        for layer in settings:
            found = nacme.neuron_states(
                golden[f"test_{layer}_o"], golden[f"test_{layer}_g"], float(golden[f"{layer}_alpha"])
            )
            np.testing.assert_allclose(found, golden[f"plain_test_{layer}_state"], rtol=0, atol=1e-5)


def test_nacue_says_what_is_wrong(net, data):
    with pytest.warns(NacmeWarning, match="fitted on 20 samples, fewer than fill=50"):
        NACUE(net).fit(data[:1])
    with pytest.raises(ConfigError, match="bins=51 must be even"):
        NACUE(net, bins=51, fill=5).fit(data)
    with pytest.raises(ConfigError, match=r"alpha by layer .* 'poll': did you mean 'pool'"):
        NACUE(net, ["pool"], alpha={"pool": 1.0, "poll": 2.0}, fill=5).fit(data)


def test_line_agrees_with_its_formula_and_with_its_own_features(net, data):
    settings = {"activation_percentile": 30.0, "weight_percentile": 40.0, "clip": 0.2}
    detector = LINe(net, **settings).fit(data)
    x, y = (torch.cat(part) for part in zip(*data))
    net.eval()
    with torch.no_grad():
        z = net.pool(net.conv2(net.norm(net.conv1(x)).relu()).relu()).flatten(1)
    contribution = OF.line_contribution(z, net.fc.weight, y, CLASSES)
    logits = OF.line_logits(z, net.fc.weight, net.fc.bias, contribution, 30, 40, 0.2)
    torch.testing.assert_close(detector.predict(x), -logits.detach().logsumexp(1), rtol=1e-4, atol=1e-5)
    bare = LINe(weight=net.fc.weight, bias=net.fc.bias, **settings).fit_features(z, y)
    torch.testing.assert_close(bare.predict_features(z), detector.predict(x), rtol=1e-4, atol=1e-5)
    other = LINe(net).fit(data)
    other.predict(x)
    torch.testing.assert_close(other.set_hyperparameters(**settings).predict(x), detector.predict(x))
    named = LINe(net, head="fc", **settings).fit(data)
    torch.testing.assert_close(named.predict(x), detector.predict(x))


def test_line_says_what_is_wrong(net, data):
    one = [(x, torch.ones_like(y)) for x, y in data]
    with pytest.warns(NacmeWarning, match=r"without samples of 2 of 3 classes \(the first: 0\)"):
        scores = LINe(net).fit(one).predict(data[0][0])
    assert scores.isfinite().all()
    with pytest.raises(ConfigError, match="needs labels"):
        LINe(net).fit([x for x, _ in data])
    with pytest.raises(LayerError, match="head 'conv1' is a Conv2d that does not produce the logits"):
        LINe(net, head="conv1").fit(data)
    with pytest.raises(ConfigError, match="single logit"):
        LINe(weight=torch.rand(1, 4)).fit_features(torch.rand(5, 4), torch.zeros(5, dtype=torch.long))
    with pytest.raises(ConfigError, match="no head"):
        LINe().fit_features(torch.rand(5, 4), torch.zeros(5, dtype=torch.long))


def test_nap_finds_the_rectified_map_before_pooling(net, data):
    detector = NAP(net)
    x = data[0][0]
    scores = detector.predict(x)
    assert detector.layer == "pool:input"
    net.eval()
    with torch.no_grad():
        maps = net.conv2(net.norm(net.conv1(x)).relu()).relu()
        logits = net(x)
    torch.testing.assert_close(scores, -OF.nap_score(maps, eps=1.0))
    torch.testing.assert_close(detector.predict_feature_maps(maps), scores)
    joined = NAP(net, energy_weight=0.25)
    expected = -OF.with_energy(OF.nap_score(maps, eps=1.0), logits, 0.25)
    torch.testing.assert_close(joined.predict(x), expected)
    with pytest.raises(ConfigError, match="needs logits"):
        joined.predict_feature_maps(maps)


@pytest.mark.parametrize("layer", [None, "1", "0"])
def test_nap_without_a_map_gives_advice_in_one_line(layer):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Linear(4, CLASSES))
    with pytest.raises(LayerError, match=r"map \[B, N, H, W\]") as error:
        NAP(flat, layer=layer).predict(torch.rand(2, 1, 6, 6))
    assert "attention" in str(error.value)
    assert "\n" not in str(error.value)


def test_nap_reads_the_class_tokens_attention():
    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(4, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.fc = nn.Linear(8, CLASSES)

        def forward(self, x):
            tokens = self.embed(x)
            out, _ = self.attention(tokens, tokens, tokens, need_weights=False)
            return self.fc(out[:, 0])

    torch.manual_seed(0)
    model, x = Transformer().eval(), torch.rand(5, 7, 4)
    tokens = model.embed(x)
    _, weights = model.attention(tokens, tokens, tokens, average_attn_weights=False)
    scores = NAP(model, layer="attention").predict(x)
    torch.testing.assert_close(scores, -OF.nap_attention_score(weights.detach()))
    with pytest.raises(LayerError, match="last attention of a transformer"):
        NAP(model).predict(x)
