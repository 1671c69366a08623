"""Each criterion against an independent computation, in numpy, scipy or by hand, with its direction."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy as scipy_entropy
from torch import nn

from nacme import Recorder
from nacme.criteria.network import Collected
from nacme.criteria.registry import all_criteria, get_criterion
from nacme.errors import ConfigError, CriterionError
from nacme.settings import CoverageSettings

DIRECTIONS = {
    "nac_me": True,
    "nac_me_auto": True,
    "nac_me_robust": True,
    "nac_activation": True,
    "nac_gradient": True,
    "val_acc": True,
    "val_acc_worst": True,
    "val_loss": False,
    "val_loss_variance": False,
    "ece": False,
    "entropy": False,
    "confidence": True,
    "feature_norm": True,
    "effective_rank": True,
    "coral_distance": False,
    "mmd": False,
    "val_acc_minus_discrepancy": True,
    "weight_norm": False,
    "gradient_norm": False,
    "sharpness": False,
    "atc": True,
    "doc": True,
    "nuclear_norm": True,
    "last": True,
}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    counts = {"env0_out": 40, "env1_out": 31, "env3_out": 25}
    model = nn.Linear(6, 4)

    def tensors(width, shift=0.0):
        return {
            env: torch.tensor(rng.normal(shift * i, 1.5, (n, width)), dtype=torch.float32)
            for i, (env, n) in enumerate(counts.items())
        }

    features, target = tensors(6, shift=0.5), {"env2_out": torch.randn(30, 4)}
    labels = {env: torch.tensor(rng.integers(0, 4, n)) for env, n in counts.items()}
    return Collected(model, tensors(4), labels, features, tensors(6), target)


def pooled(tensors):
    return np.concatenate([values.double().numpy() for values in tensors.values()])


def value(name, data):
    return get_criterion(name).compute(data)


@pytest.mark.parametrize(("name", "higher"), DIRECTIONS.items())
def test_direction_is_fixed(name, higher):
    assert get_criterion(name).higher_is_better is higher


def test_what_each_criterion_sees_is_said():
    sees = {c.name: c.sees for c in all_criteria().values()}
    assert {name for name, what in sees.items() if what == "target_unlabeled"} == {"atc", "doc", "nuclear_norm"}
    assert {"oracle", "domainbed_oracle"} <= {name for name, what in sees.items() if what == "oracle"}


def test_val_loss_variance(data):
    losses = []
    for env, logits in data.logits.items():
        rows = log_softmax(logits.double().numpy(), axis=1)
        losses.append(-rows[np.arange(len(rows)), data.labels[env].numpy()].mean())
    assert value("val_loss_variance", data) == pytest.approx(np.var(losses), rel=1e-5)


def test_ece(data):
    probabilities = softmax(pooled(data.logits), axis=1)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == pooled(data.labels)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert value("ece", data) == pytest.approx(expected, abs=1e-5)


def test_entropy_and_confidence(data):
    probabilities = softmax(pooled(data.logits), axis=1)
    assert value("entropy", data) == pytest.approx(scipy_entropy(probabilities, axis=1).mean(), rel=1e-5)
    assert value("confidence", data) == pytest.approx(probabilities.max(axis=1).mean(), rel=1e-5)


def test_feature_norm(data):
    assert value("feature_norm", data) == pytest.approx(
        np.linalg.norm(pooled(data.features), axis=1).mean(), rel=1e-5
    )


@pytest.mark.parametrize("samples", [20, 200])
def test_effective_rank(data, samples):
    features = torch.randn(samples, 48)
    collected = Collected(data.model, {}, {}, {"env0_out": features}, {})
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
    assert value("effective_rank", collected) == pytest.approx(np.exp(scipy_entropy(singular)), rel=1e-5)


def test_effective_rank_of_identical_directions_is_one(data):
    direction = torch.randn(1, 8)
    collected = Collected(data.model, {}, {}, {"env0_out": torch.rand(30, 1) * direction}, {})
    assert value("effective_rank", collected) == pytest.approx(1.0, abs=1e-3)


def test_coral_distance(data):
    features = [values.double().numpy() for values in data.features.values()]
    distances = [
        np.mean((a.mean(0) - b.mean(0)) ** 2) + np.mean((np.cov(a.T) - np.cov(b.T)) ** 2)
        for i, a in enumerate(features)
        for b in features[i + 1 :]
    ]
    assert value("coral_distance", data) == pytest.approx(np.mean(distances), rel=1e-4)


def unbiased_mmd(a, b, bandwidth_squared):
    """Sums over pairs, as Gretton et al. write the estimator."""

    def kernel(x, y):
        return math.exp(-((x - y) ** 2).sum() / (2 * bandwidth_squared))

    within_a = sum(kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j)
    within_b = sum(kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j)
    across = sum(kernel(x, y) for x in a for y in b)
    m, n = len(a), len(b)
    return within_a / (m * (m - 1)) + within_b / (n * (n - 1)) - 2 * across / (m * n)


def test_mmd_and_accuracy_minus_discrepancy(data):
    features = [values.double().numpy() for values in data.features.values()]
    together = np.concatenate(features)
    squared = ((together[:, None] - together[None]) ** 2).sum(-1)[np.triu_indices(len(together), 1)]
    # torch's median is the lower of the two middle values
    median = np.sort(squared)[(len(squared) - 1) // 2]
    expected = np.mean([unbiased_mmd(a, b, median / 2) for i, a in enumerate(features) for b in features[i + 1 :]])
    assert value("mmd", data) == pytest.approx(expected, rel=1e-5)
    accuracy = np.mean([float((data.logits[e].argmax(1) == data.labels[e]).double().mean()) for e in data.logits])
    assert value("val_acc_minus_discrepancy", data) == pytest.approx(accuracy - math.sqrt(expected), rel=1e-5)


def test_discrepancy_of_one_environment_is_undefined(data):
    alone = Collected(data.model, {}, {}, {"env0_out": torch.randn(10, 3)}, {})
    assert math.isnan(value("mmd", alone))
    assert math.isnan(value("coral_distance", alone))


def test_weight_norm(data):
    weights = np.concatenate([p.detach().numpy().ravel() for p in data.model.parameters()])
    assert value("weight_norm", data) == pytest.approx(np.linalg.norm(weights), rel=1e-5)


def test_target_criteria(data):
    source, target = softmax(pooled(data.logits), axis=1), softmax(pooled(data.target_logits), axis=1)
    correct = source.argmax(axis=1) == pooled(data.labels)
    scores = np.sort(-scipy_entropy(source, axis=1))
    threshold = scores[int((~correct).sum())]
    # as many validation samples lie below the threshold as are wrong
    assert (scores < threshold).mean() == pytest.approx((~correct).mean())
    assert value("atc", data) == pytest.approx((-scipy_entropy(target, axis=1) >= threshold).mean(), abs=1e-6)
    doc = correct.mean() - (source.max(axis=1).mean() - target.max(axis=1).mean())
    assert value("doc", data) == pytest.approx(doc, rel=1e-5)
    nuclear = np.linalg.norm(target, ord="nuc") / math.sqrt(len(target) * min(target.shape))
    assert value("nuclear_norm", data) == pytest.approx(nuclear, rel=1e-5)


@pytest.mark.filterwarnings("ignore::nacme.errors.DegenerateCoverageWarning")
class TestThroughTheRecorder:
    def setup_method(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(90, 6, generator=generator)
        y = torch.randint(3, (90,), generator=generator)
        self.loaders = {f"env{i}_out": list(zip(x[i::3].split(16), y[i::3].split(16))) for i in range(3)}
        self.x, self.y = torch.cat([x[i::3] for i in range(3)]), torch.cat([y[i::3] for i in range(3)])

    def record(self, **options):
        return Recorder(self.model, self.loaders, settings=CoverageSettings(1.0, 20, 2), **options).record()

    def test_every_cheap_criterion_is_recorded_by_default_and_no_other(self):
        record = self.record()
        expected = {
            c.name for c in all_criteria().values() if c.is_recorded and c.sees == "ind" and not c.optional
        }
        expected.remove("sham_permuted")  # needs a run's other checkpoints, and is written at its end
        # val_acc is no criterion of the network's, yet a record has it
        assert {key for key in record if key in all_criteria()} == expected | {"val_acc"}
        assert all(isinstance(record[name], float) for name in expected)

    def test_one_pass_serves_them_all(self):
        passes = []
        self.model.register_forward_hook(lambda *_: passes.append(1))
        self.record()
        assert len(passes) == sum(len(loader) for loader in self.loaders.values())

    def test_ablations_are_coverage_of_one_factor(self):
        record = self.record()
        one_factor = CoverageSettings(alpha="auto", bins=20, fill=2, quantity="gradient")
        alone = Recorder(self.model, self.loaders, settings=one_factor, criteria=[]).record()
        assert record["nac_gradient"] == alone["nac_me"]

    def test_target_criteria_only_with_target_data(self):
        with pytest.raises(ConfigError, match="--target_unlabeled"):
            self.record(criteria=["atc"])
        record = self.record(target_loaders={"env5_out": self.loaders["env0_out"]})
        assert {"atc", "doc", "nuclear_norm"} <= record.keys()

    def test_gradient_norm_and_sharpness(self):
        before = copy.deepcopy(self.model.state_dict())
        record = self.record(criteria=["gradient_norm", "sharpness"])
        assert all(torch.equal(value, before[name]) for name, value in self.model.state_dict().items())
        twin = copy.deepcopy(self.model).eval()
        loss = nn.functional.cross_entropy(twin(self.x), self.y)
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
        assert record["gradient_norm"] == pytest.approx(float(norm.detach()), rel=1e-4)
        with torch.no_grad():
            for p in twin.parameters():
                p += 0.05 * p.grad / norm
            raised = nn.functional.cross_entropy(twin(self.x), self.y)
        assert record["sharpness"] == pytest.approx(float(raised - loss.detach()), rel=1e-3)
        assert all(p.grad is None for p in self.model.parameters())

    def test_further_passes_leave_the_random_state(self):
        torch.manual_seed(3)
        self.record()
        cheap = torch.get_rng_state()
        torch.manual_seed(3)
        self.record(criteria=["gradient_norm", "sharpness"])
        assert torch.equal(torch.get_rng_state(), cheap)

    def test_unknown_criterion(self):
        with pytest.raises(CriterionError, match="did you mean 'entropy'"):
            self.record(criteria=["entropi"])

    def test_a_users_own_criterion(self):
        from nacme.criteria.registry import _REGISTRY, criterion

        @criterion(higher_is_better=True, sees="ind", needs=["logits"], cost="none", source="here")
        def margin(data):
            "Mean distance between the two largest logits."
            top = data.pooled_logits().topk(2, dim=1).values
            return float((top[:, 0] - top[:, 1]).mean())

        try:
            assert self.record()["margin"] > 0
        finally:
            del _REGISTRY["margin"]
