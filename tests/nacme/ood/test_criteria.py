"""The detectors' criteria against the detectors themselves, through the recorder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nacme.criteria.registry import get_criterion
from nacme.errors import NacmeWarning
from nacme.recorder import Recorder

NAMES = ["nac_ue_mean", "line_energy", "nap_mean"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


@pytest.fixture
def loaders():
    generator = torch.Generator().manual_seed(1)

    def batch(n):
        return torch.rand(n, 1, 6, 6, generator=generator), torch.randint(3, (n,), generator=generator)

    # an odd number of samples, in batches of odd sizes: halves go by sample, not by batch
    return {"env0_out": [batch(13), batch(8)], "env1_out": [batch(16), batch(16)]}


@pytest.mark.filterwarnings("ignore::nacme.errors.NacmeWarning")
def test_are_the_detectors_scores(model, loaders):
    ood = pytest.importorskip("nacme.ood")
    pytest.importorskip("pytorch_ood")
    record = Recorder(model, loaders, criteria=NAMES).record()
    whole = [tuple(torch.cat(part) for part in zip(*batches)) for batches in loaders.values()]
    fit = [(x[::2], y[::2]) for x, y in whole]
    others = torch.cat([x[1::2] for x, _ in whole])
    nacue = ood.NACUE(model).fit(fit)
    assert record["nac_ue_mean"] == pytest.approx(-float(nacue.predict(others).mean()), abs=1e-6)
    line = ood.LINe(model).fit(fit)
    assert record["line_energy"] == pytest.approx(-float(line.predict(others).mean()), abs=1e-5)
    images = torch.cat([x for x, _ in whole])
    assert record["nap_mean"] == pytest.approx(-float(ood.NAP(model).predict(images).mean()), abs=1e-5)


def test_recorded_only_when_asked_for(model, loaders):
    assert not set(NAMES) & set(Recorder(model, loaders).criteria)
    assert all(get_criterion(name).higher_is_better and get_criterion(name).sees == "ind" for name in NAMES)


def test_leave_model_and_random_numbers_alone(model, loaders):
    pytest.importorskip("pytorch_ood")
    model.train()
    before = torch.get_rng_state()
    first = Recorder(model, loaders, criteria=NAMES)
    first.warned = True
    records = [first.record() for _ in range(2)]
    assert records[0] == records[1]
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_nap_needs_a_feature_map(loaders):
    pytest.importorskip("pytorch_ood")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
    recorder = Recorder(flat, loaders, criteria=["nap_mean"])
    recorder.warned = True
    with pytest.warns(NacmeWarning, match="nap_mean.*no feature map"):
        assert recorder.record()["nap_mean"] is None
