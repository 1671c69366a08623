from __future__ import annotations

import copy
import json
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from domainbed_plugins.testbed import algorithms, hparams_registry, networks

SHAPE, CLASSES, DOMAINS = (1, 16, 16), 4, 3


def minibatches(seed=0, sizes=(6, 6, 6)):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(n, *SHAPE, generator=generator), torch.randint(CLASSES, (n,), generator=generator))
        for n in sizes
    ]


def build(name, **hparams):
    torch.manual_seed(0)
    hparams = hparams_registry.default_hparams(name, "RotatedDigits") | hparams
    return algorithms.get_algorithm_class(name)(SHAPE, CLASSES, DOMAINS, hparams)


def risks(algorithm, batches):
    with torch.no_grad():
        return [float(F.cross_entropy(algorithm.network(x), y)) for x, y in batches]


def expect_gradient_of(algorithm, loss):
    """Make the first step of Adam on `loss` with a copy: parameters after it."""
    twin = copy.deepcopy(algorithm)
    optimizer = torch.optim.Adam(twin.network.parameters(), lr=twin.hparams["lr"])
    loss(twin).backward()
    optimizer.step()
    return [p.detach() for p in twin.network.parameters()]


def assert_same_step(algorithm, expected):
    for p, q in zip(algorithm.network.parameters(), expected):
        # Adam's first step is the gradient's sign times lr: leave room where a gradient is all but zero.
        close = torch.isclose(p.detach(), q, atol=1e-6, rtol=1e-4)
        assert close.float().mean() > 0.99


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_training_on_one_minibatch_lowers_its_risk(name):
    algorithm = build(name, lr=1e-3)
    batches = minibatches()
    before = np.mean(risks(algorithm, batches))
    for _ in range(30):
        values = algorithm.update(batches)
        assert all(type(v) is float and np.isfinite(v) for v in values.values())
    assert "loss" in values
    assert np.mean(risks(algorithm, batches)) < before
    assert algorithm.predict(batches[0][0]).shape == (6, CLASSES)


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_a_checkpoint_loads_into_a_new_instance(name):
    algorithm = build(name)
    algorithm.update(minibatches())
    new = build(name)
    new.load_state_dict(algorithm.state_dict())
    x = minibatches(1)[0][0]
    assert torch.equal(new.predict(x), algorithm.predict(x))


def test_erm_minimizes_the_mean_over_all_samples():
    algorithm, batches = build("ERM"), minibatches(sizes=(2, 4, 8))
    values = np.average(risks(algorithm, batches), weights=(2, 4, 8))
    expected = expect_gradient_of(
        algorithm, lambda a: sum(len(y) * F.cross_entropy(a.network(x), y) for x, y in batches) / 14
    )
    assert algorithm.update(batches) == {"loss": pytest.approx(values, rel=1e-5)}
    assert_same_step(algorithm, expected)


def test_groupdro_weights_grow_with_the_exponential_of_the_losses():
    algorithm, batches = build("GroupDRO", groupdro_eta=0.5), minibatches()
    q = np.ones(DOMAINS)
    for _ in range(3):
        losses = np.array(risks(algorithm, batches))
        q *= np.exp(0.5 * losses)
        q /= q.sum()
        fixed = torch.tensor(q, dtype=torch.float32)
        loss = algorithm.update(batches)["loss"]
        assert loss == pytest.approx(q @ losses, rel=1e-5)
        torch.testing.assert_close(algorithm.q, fixed, rtol=1e-5, atol=0)


def test_groupdro_takes_its_weights_as_constants():
    algorithm, batches = build("GroupDRO", groupdro_eta=2.0), minibatches()
    q = torch.softmax(2.0 * torch.tensor(risks(algorithm, batches)), 0)
    expected = expect_gradient_of(
        algorithm, lambda a: sum(w * F.cross_entropy(a.network(x), y) for w, (x, y) in zip(q, batches))
    )
    algorithm.update(batches)
    assert_same_step(algorithm, expected)


def test_mixup_mixes_neighbours_on_the_ring_and_both_labels():
    algorithm, batches = build("Mixup", mixup_alpha=0.7), minibatches()
    torch.manual_seed(3)
    ring = torch.randperm(DOMAINS).tolist()
    state = np.random.RandomState(5)
    total = 0.0
    for i, j in zip(ring, [*ring[1:], ring[0]]):
        lam = state.beta(0.7, 0.7)
        with torch.no_grad():
            logits = algorithm.network(lam * batches[i][0] + (1 - lam) * batches[j][0])
            total += lam * F.cross_entropy(logits, batches[i][1]).item()
            total += (1 - lam) * F.cross_entropy(logits, batches[j][1]).item()
    torch.manual_seed(3)
    np.random.seed(5)  # noqa: NPY002
    assert algorithm.update(batches)["loss"] == pytest.approx(total / DOMAINS, rel=1e-5)


def test_coral_distance_is_that_of_means_and_covariances():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)), 2 * rng.normal(size=(5, 3)) + 1
    expected = np.mean((x.mean(0) - y.mean(0)) ** 2)
    expected += np.mean((np.cov(x, rowvar=False) - np.cov(y, rowvar=False)) ** 2)
    actual = algorithms.coral_distance(torch.tensor(x), torch.tensor(y))
    assert float(actual) == pytest.approx(expected, rel=1e-10)


def test_coral_adds_the_mean_distance_over_all_pairs():
    algorithm, batches = build("CORAL", mmd_gamma=3.0), minibatches(sizes=(4, 6, 5))

    def distance(a):
        features = [a.featurizer(x) for x, _ in batches]
        terms = []
        for f, g in combinations(features, 2):
            terms.append((f.mean(0) - g.mean(0)).pow(2).mean())
            terms.append((torch.cov(f.T) - torch.cov(g.T)).pow(2).mean())
        return sum(terms) / 3

    def loss(a):
        return sum(F.cross_entropy(a.network(x), y) for x, y in batches) / 3 + 3.0 * distance(a)

    expected = expect_gradient_of(algorithm, loss)
    penalty, risk = distance(algorithm).item(), np.mean(risks(algorithm, batches))
    values = algorithm.update(batches)
    assert values == {"loss": pytest.approx(risk, rel=1e-5), "penalty": pytest.approx(penalty, rel=1e-4)}
    assert_same_step(algorithm, expected)


def test_coral_with_one_environment_has_no_penalty():
    assert build("CORAL").update(minibatches()[:1])["penalty"] == 0.0


def test_irm_penalty_is_the_product_of_hand_derived_gradients():
    """d/ds CE(s f, y) at s = 1 is the mean over samples of sum_c (softmax(f)_c - 1[c = y]) f_c."""
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(7, CLASSES)), rng.integers(CLASSES, size=7)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slope = ((p - np.eye(CLASSES)[y]) * logits).sum(1)
    expected = slope[::2].mean() * slope[1::2].mean()
    actual = algorithms.irm_penalty(torch.tensor(logits, requires_grad=True), torch.tensor(y))
    assert float(actual.detach()) == pytest.approx(expected, rel=1e-10)


def test_irm_penalty_is_differentiable_in_the_logits():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, CLASSES, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 3])
    assert torch.autograd.gradcheck(lambda f: algorithms.irm_penalty(f, y), (logits,))


def test_vrex_penalizes_the_variance_of_the_risks():
    algorithm, batches = build("VREx", vrex_lambda=50.0, vrex_penalty_anneal_iters=0), minibatches()
    values = risks(algorithm, batches)

    def loss(a):
        terms = [F.cross_entropy(a.network(x), y) for x, y in batches]
        mean = sum(terms) / 3
        return mean + 50.0 * sum((t - mean) ** 2 for t in terms) / 3

    expected = expect_gradient_of(algorithm, loss)
    assert algorithm.update(batches) == {
        "loss": pytest.approx(np.mean(values) + 50.0 * np.var(values), rel=1e-5),
        "nll": pytest.approx(values[-1], rel=1e-5),
        "penalty": pytest.approx(np.var(values), rel=1e-3),
    }
    assert_same_step(algorithm, expected)


@pytest.mark.parametrize("name", ["IRM", "VREx"])
def test_the_penalty_weight_jumps_after_the_annealing_and_adam_starts_afresh(name):
    key = name.lower()
    algorithm = build(name, **{f"{key}_lambda": 20.0, f"{key}_penalty_anneal_iters": 2})
    optimizers, weights = [], []
    for _ in range(4):
        batches = minibatches(len(weights))
        risk = np.mean(risks(algorithm, batches))
        values = algorithm.update(batches)
        weights.append((values["loss"] - risk) / values["penalty"])
        optimizers.append(algorithm.optimizer)
    assert weights == pytest.approx([1, 1, 20, 20], rel=0.05)
    assert optimizers[0] is optimizers[1] is not optimizers[2]
    assert optimizers[2] is optimizers[3]
    assert algorithm.update_count.tolist() == [4]


def test_features_are_pooled_non_negative_and_independent_of_the_batch():
    algorithm, (x, _) = build("ERM"), minibatches()[0]
    features = algorithm.featurizer(x)
    assert features.shape == (6, networks.Featurizer.n_outputs)
    assert features.min() >= 0
    torch.testing.assert_close(algorithm.featurizer(x[:1]), features[:1])
    torch.testing.assert_close(algorithm.predict(x), algorithm.classifier(features))
    assert isinstance(algorithm.classifier, torch.nn.Linear)
    assert "featurizer.avgpool" in dict(algorithm.named_modules())


def test_a_nonlinear_classifier_narrows_twice():
    linears = [m for m in build("ERM", nonlinear_classifier=True).classifier if hasattr(m, "in_features")]
    assert [(m.in_features, m.out_features) for m in linears] == [(64, 32), (32, 16), (16, CLASSES)]


def test_an_unknown_name_is_refused():
    with pytest.raises(NotImplementedError, match="NoSuchAlgorithm"):
        algorithms.get_algorithm_class("NoSuchAlgorithm")


OWN = {
    "ERM": set(),
    "IRM": {"irm_lambda", "irm_penalty_anneal_iters"},
    "VREx": {"vrex_lambda", "vrex_penalty_anneal_iters"},
    "GroupDRO": {"groupdro_eta"},
    "Mixup": {"mixup_alpha"},
    "CORAL": {"mmd_gamma"},
}


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_random_hparams_repeat_and_stay_trainable(name):
    default = hparams_registry.default_hparams(name, "RotatedDigits")
    common = {"batch_size", "class_balanced", "data_augmentation", "nonlinear_classifier", "lr", "weight_decay"}
    assert default.keys() == common | OWN[name]
    draws = [hparams_registry.random_hparams(name, "RotatedDigits", seed) for seed in range(50)]
    assert draws[7] == hparams_registry.random_hparams(name, "RotatedDigits", 7)
    for draw in draws:
        assert draw.keys() == default.keys()
        assert json.loads(json.dumps(draw)) == draw
        assert {k: type(v) for k, v in draw.items()} == {k: type(v) for k, v in default.items()}
        assert 2 <= draw["batch_size"] <= 239 // 2
    for key in {"lr", "weight_decay"} | OWN[name]:
        assert len({draw[key] for draw in draws}) > 10, key


def test_random_hparams_are_drawn_by_name_so_that_algorithms_share_the_common_ones():
    erm = hparams_registry.random_hparams("ERM", "RotatedDigits", 5)
    irm = hparams_registry.random_hparams("IRM", "RotatedDigits", 5)
    assert {key: irm[key] for key in erm} == erm
