"""GReg against the authors' numbers, and inside both testbeds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from domainbed_plugins import score, train
from domainbed_plugins.algorithms import greg
from domainbed_plugins.backends import find as backends
from nacme.errors import ConfigError

GOLDEN = Path(__file__).parents[2] / "golden"


class Net(nn.Module):
    """The network of the golden file."""

    def __init__(self, arrays, prefix="param."):
        super().__init__()
        for layer in ("fc1", "fc2", "fc3"):
            weight = arrays[f"{prefix}{layer}.weight"]
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight.data.copy_(weight)
            linear.bias.data.copy_(arrays[f"{prefix}{layer}.bias"])
            setattr(self, layer, linear)

    def features(self, x):
        return F.relu(self.fc2(torch.tanh(self.fc1(x))))

    def forward(self, x):
        return self.fc3(self.features(x))


@pytest.fixture(scope="module", params=["greg_01", "greg_02"])
def golden(request):
    with np.load(GOLDEN / f"{request.param}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


@pytest.mark.parametrize("e", range(5))
def test_losses_and_their_gradients_are_the_authors(golden, e):
    net = Net(golden)
    m_in, m_out, beta, lam = golden["energy_cfg"][e].tolist()
    energy_in, energy_out = (greg.energy(net(golden[name])) for name in ("x_in", "x_out"))
    np.testing.assert_allclose(energy_in.detach(), golden["energy_in"], rtol=1e-5, atol=1e-5)
    margin = beta * greg.energy_margin_loss(energy_in, energy_out, m_in, m_out)
    np.testing.assert_allclose(margin.item(), golden[f"e{e}_energy_loss"], rtol=1e-5, atol=1e-5)
    penalty = (lam or 1) * greg.gradient_penalty(net, golden["x_in"], golden["x_out"], m_in, m_out)
    np.testing.assert_allclose(penalty.item(), golden[f"e{e}_jac_loss"], rtol=1e-5, atol=1e-5)
    total = F.cross_entropy(net(golden["x_in"]), golden["y_in"]) + margin + (penalty if lam else 0)
    np.testing.assert_allclose(total.item(), golden[f"e{e}_total_loss"], rtol=1e-5, atol=1e-5)
    total.backward()
    for name, parameter in net.named_parameters():
        expected = golden[f"e{e}_grad.{name}"]
        np.testing.assert_allclose(parameter.grad, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_penalty_is_zero_where_no_sample_satisfies_its_margin(golden):
    net = Net(golden)
    penalty = greg.gradient_penalty(net, golden["x_in"], golden["x_out"], -1e3, 1e3)
    assert penalty.item() == 0
    penalty.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("s", range(4))
def test_selection_is_the_authors_before_the_random_fill(golden, s):
    start, end, clusters, size, two_way, normalize, extra_class = golden["samp_cfg"][s].tolist()
    net = Net(golden, "abs.param." if extra_class else "param.")
    logits, features = net(golden["cand_x"]).detach(), net.features(golden["cand_x"]).detach()
    scores = logits.softmax(1)[:, -1] if extra_class else greg.energy(logits)
    np.testing.assert_allclose(scores, golden[f"s{s}_weight"], rtol=1e-4, atol=1e-5)
    settings = {
        "size": size,
        "clusters": clusters,
        "start": start,
        "end": end,
        "two_way": bool(two_way),
        "normalize": bool(normalize),
    }
    scores = golden[f"s{s}_weight"]
    picked = greg.select_outliers(scores, features, fill=False, n_init=20, **settings)
    assert sorted(picked.tolist()) == golden[f"s{s}_selected_before_fill"].tolist()
    filled = greg.select_outliers(
        scores, features, n_init=20, generator=torch.Generator().manual_seed(0), **settings
    ).tolist()
    assert len(filled) == len(set(filled)) == len(picked) + int(golden[f"s{s}_n_fill"])
    assert set(picked.tolist()) <= set(filled) <= set(golden[f"s{s}_sorted_idx"][start:end].tolist())


def test_selection_with_more_clusters_than_samples_takes_the_hardest():
    scores, features = torch.tensor([3.0, 1.0, 2.0]), torch.eye(3)
    assert greg.select_outliers(scores, features, size=2, clusters=9).tolist() == [1, 2]
    same = greg.select_outliers(scores, torch.ones(3, 4), size=2, clusters=3)
    assert same.tolist() == [1, 2]


def test_selection_says_what_is_wrong():
    with pytest.raises(ConfigError, match="no candidate of 3"):
        greg.select_outliers(torch.rand(3), torch.eye(3), size=1, clusters=1, start=3)
    with pytest.raises(ConfigError, match="at least 1"):
        greg.select_outliers(torch.rand(3), torch.eye(3), size=0, clusters=1)


def _testbed(name):
    if name == "embedded":
        return backends.embedded()
    if not os.environ.get("DOMAINBED_ROOT"):
        pytest.skip("needs a DomainBed clone: set DOMAINBED_ROOT")
    return backends.domainbed()


BOTH = pytest.mark.parametrize(
    ("name", "shape", "dataset"),
    [
        ("embedded", (1, 8, 8), "any"),
        pytest.param("domainbed", (2, 28, 28), "ColoredMNIST", marks=pytest.mark.domainbed),
    ],
)


def _hparams(testbed, dataset, **changed):
    greg.register(testbed)
    return {**testbed.hparams_registry.default_hparams("GReg", dataset), **changed}


def _batches(shape, seed, classes=2):
    generator = torch.Generator().manual_seed(seed)
    means = torch.linspace(-1, 1, classes)
    batches = []
    for _ in range(2):
        y = torch.arange(16) % classes
        x = 0.3 * torch.randn(16, *shape, generator=generator) + means[y][:, None, None, None]
        batches.append((x, y))
    return batches


@BOTH
def test_registry_knows_the_hyper_parameters(name, shape, dataset):
    testbed = _testbed(name)
    assert greg.register(testbed) is testbed.algorithms.get_algorithm_class("GReg")
    assert testbed.algorithms.ALGORITHMS.count("GReg") == 1
    assert testbed.algorithms.get_algorithm_class("GReg") is greg.register(testbed)
    default = testbed.hparams_registry.default_hparams("GReg", dataset)
    drawn = [testbed.hparams_registry.random_hparams("GReg", dataset, seed) for seed in (1, 1, 2)]
    assert set(greg.HPARAMS) < set(default) == set(drawn[0])
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(one["greg_m_in"] < one["greg_m_out"] for one in (default, *drawn))
    json.dumps([default, {name: drawn[0][name] for name in greg.HPARAMS}])
    assert not set(greg.HPARAMS) & set(testbed.hparams_registry.default_hparams("ERM", dataset))


@BOTH
@pytest.mark.parametrize("candidates", [1, 4])
def test_training_lowers_the_losses_on_both_sides(name, shape, dataset, candidates):
    testbed = _testbed(name)
    hparams = _hparams(testbed, dataset, lr=1e-2, greg_candidates=candidates)
    torch.manual_seed(0)
    algorithm = greg.register(testbed)(shape, 2, 2, hparams)
    steps = 20 if name == "embedded" else 6  # DomainBed's network takes half a second per step
    history = [algorithm.update(_batches(shape, step)) for step in range(steps)]
    assert all(np.isfinite(value) for step in history for value in step.values())
    assert history[-1]["ce"] < 0.5 * history[0]["ce"]
    assert history[-1]["margin"] < history[0]["margin"]
    assert max(step["penalty"] for step in history) > 0
    assert algorithm.training
    x, y = _batches(shape, 99)[0]
    assert (algorithm.predict(x).argmax(1) == y).float().mean() > 0.9


def test_same_seed_same_training_and_checkpoints_load():
    testbed = backends.embedded()
    hparams = _hparams(testbed, "any", greg_candidates=2)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        algorithm = greg.register(testbed)((1, 8, 8), 2, 2, hparams)
        runs.append([algorithm.update(_batches((1, 8, 8), step)) for step in range(3)])
    assert runs[0] == runs[1]
    fresh = greg.register(testbed)((1, 8, 8), 2, 2, hparams)
    fresh.load_state_dict(algorithm.state_dict())
    x, _ = _batches((1, 8, 8), 5)[0]
    torch.testing.assert_close(fresh.predict(x), algorithm.predict(x))


@pytest.mark.parametrize(("ramp", "share"), [(0, 1.0), (1, 1.0), (4, 0.25)])
def test_update_is_cross_entropy_plus_weighted_terms(monkeypatch, ramp, share):
    testbed = backends.embedded()
    hparams = _hparams(testbed, "any", greg_beta=0.3, greg_lambda=2.0, greg_ramp=ramp)
    torch.manual_seed(0)
    algorithm = greg.register(testbed)((1, 8, 8), 2, 2, hparams)
    batches = _batches((1, 8, 8), 0)
    x, y = (torch.cat(part) for part in zip(*batches))
    outside = torch.rand(32, 1, 8, 8)
    monkeypatch.setattr(greg, "pseudo_outliers", lambda *_: outside)
    margins = hparams["greg_m_in"], hparams["greg_m_out"]
    energies = greg.energy(algorithm.predict(x)), greg.energy(algorithm.predict(outside))
    weighted = 0.3 * greg.energy_margin_loss(*energies, *margins)
    weighted = weighted + 2 * greg.gradient_penalty(algorithm.network, x, outside, *margins)
    expected = F.cross_entropy(algorithm.predict(x), y) + share * weighted
    assert algorithm.update(batches)["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_another_data_set_serves_as_outliers():
    testbed = backends.embedded()
    torch.manual_seed(0)
    hparams = _hparams(testbed, "any", greg_outliers="RotatedDigits")
    algorithm = greg.register(testbed)((3, 12, 12), 2, 2, hparams)
    assert np.isfinite(algorithm.update(_batches((3, 12, 12), 0))["loss"])
    hparams = _hparams(testbed, "any", greg_outliers="ColoredDigits")
    algorithm = greg.register(testbed)((3, 12, 12), 2, 2, hparams)
    with pytest.raises(ConfigError, match="images of 2 channels do not fit images of 3"):
        algorithm.update(_batches((3, 12, 12), 0))


@pytest.mark.domainbed
def test_outliers_are_loaded_when_training_needs_them(tmp_path):
    testbed = _testbed("domainbed")
    hparams = _hparams(testbed, "any", greg_outliers="PACS", greg_data_dir=str(tmp_path))
    algorithm = greg.register(testbed)((2, 28, 28), 2, 2, hparams)
    batches = _batches((2, 28, 28), 0)
    assert algorithm.predict(batches[0][0]).shape == (16, 2)  # as scoring its checkpoint does
    with pytest.raises(ConfigError, match="PACS cannot be read there"):
        algorithm.update(batches)


def test_outliers_of_a_data_set_do_not_disturb_training():
    testbed = backends.embedded()
    hparams = _hparams(testbed, "any", greg_outliers="RotatedDigits")
    torch.manual_seed(0)
    algorithm = greg.register(testbed)((1, 8, 8), 2, 2, hparams)
    before = torch.get_rng_state()
    algorithm.update(_batches((1, 8, 8), 0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore::nacme.errors.NacmeWarning")  # so short a training has degenerate coverage
@pytest.mark.parametrize(
    ("dataset", "steps"), [("RotatedDigits", 12), pytest.param("RotatedMNIST", 2, marks=pytest.mark.domainbed)]
)
def test_trains_by_its_name_and_its_checkpoints_score(dataset, steps, tmp_path, request):
    data_dir = ""
    if dataset == "RotatedMNIST":
        _testbed("domainbed")
        data_dir = str(request.getfixturevalue("nacme_data") / "mnist10k")
    run = tmp_path / "run"
    flags = ["--algorithm", "GReg", "--dataset", dataset, "--data_dir", data_dir, "--test_envs", "1"]
    flags += ["--steps", str(steps), "--checkpoint_freq", str(steps), "--output_dir", str(run)]
    flags += ["--hparams", '{"batch_size": 8}', "--n_workers", "0", "--eval_splits", "fast"]
    flags += ["--save_model_every_checkpoint", "--nac_alpha", "auto"]
    train.main(flags)
    recorded = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert recorded[0]["args"]["algorithm"] == "GReg"
    assert recorded[0]["hparams"]["greg_outliers"] == "jigsaw"
    score.main([str(run), "--nac_alpha", "auto", *(["--data_dir", data_dir] if data_dir else [])])
    scored = [json.loads(line) for line in (run / "nac.jsonl").read_text().splitlines()]
    for one, other in zip(recorded, scored, strict=True):
        assert other["nac_me"] == pytest.approx(one["nac_me"], abs=1e-6)
        assert other["val_loss"] == pytest.approx(one["val_loss"], abs=1e-5)


def test_wrong_settings_are_named():
    testbed = backends.embedded()
    with pytest.raises(ConfigError, match="greg_outliers='jigsav' is unknown; did you mean 'jigsaw'"):
        greg.register(testbed)((1, 8, 8), 2, 2, _hparams(testbed, "any", greg_outliers="jigsav"))
    with pytest.raises(ConfigError, match="greg_m_in=1 must lie below greg_m_out=-4"):
        greg.register(testbed)((1, 8, 8), 2, 2, _hparams(testbed, "any", greg_m_in=1))
