"""The bare formulas against the authors' numbers, and the properties that a user relies on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nacme.errors import ConfigError
from nacme.ood import functional as OF

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module", params=["line_01", "line_02"])
def golden(request):
    with np.load(GOLDEN / f"{request.param}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


def test_contribution_is_the_authors_class_mean(golden):
    found = OF.line_contribution(
        golden["taylor_z"], golden["weight"], golden["taylor_labels"], len(golden["weight"])
    )
    assert found.shape == golden["taylor_class_mean"].shape
    np.testing.assert_allclose(found, golden["taylor_class_mean"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("source", ["given", "taylor"])
@pytest.mark.parametrize("p", [0, 1, 2])
def test_logits_masks_and_energy_are_the_authors(golden, source, p):
    z, weight, bias = golden["z"], golden["weight"], golden["bias"]
    contribution = golden["contrib" if source == "given" else "taylor_class_mean"]
    p_a, p_w = golden["p_a_p_w"][p].tolist()
    for c, column in enumerate(contribution.T):
        neuron, pair = OF.line_thresholds(column, weight, p_a, p_w)
        assert torch.equal(column > neuron, golden[f"{source}_p{p}_mask_f"][c])
        assert torch.equal(column.abs() * weight.double() > pair, golden[f"{source}_p{p}_mask_w"][c])
    for c, clip in enumerate(golden["clip"].tolist()):
        logits = OF.line_logits(z, weight, bias, contribution, p_a, p_w, clip)
        np.testing.assert_allclose(logits, golden[f"{source}_p{p}_c{c}_logits"], rtol=1e-5, atol=1e-5)
        expected = golden[f"{source}_p{p}_c{c}_energy"]
        np.testing.assert_allclose(logits.logsumexp(1), expected, rtol=1e-5, atol=1e-5)
        mean = OF.line_energy(z, weight, bias, contribution, p_a, p_w, clip)
        assert mean == pytest.approx(float(expected.mean()), abs=1e-5)


def test_a_class_without_samples_keeps_nothing():
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    bias = torch.tensor([0.1, 0.2, 0.3])
    z = torch.rand(6, 2)
    contribution = OF.line_contribution(z, weight, torch.tensor([0, 1, 0, 1, 0, 1]), 3)
    assert contribution[:, 2].isnan().all()
    assert contribution[:, :2].isfinite().all()
    logits = OF.line_logits(z + 1, weight, bias, contribution, 10, 10, 1e10)  # all predicted as class 2
    assert torch.equal(logits, bias.expand(6, 3))


@settings(deadline=None)
@given(order=st.permutations(range(7)))
def test_logits_of_a_sample_do_not_depend_on_its_batch(order):
    torch.manual_seed(0)
    z, weight = torch.rand(7, 5), torch.randn(4, 5)
    contribution = OF.line_contribution(torch.rand(20, 5), weight, torch.arange(20) % 4, 4)
    whole = OF.line_logits(z, weight, None, contribution, 50, 50, 0.8)
    again = OF.line_logits(z[list(order)], weight, None, contribution, 50, 50, 0.8)
    torch.testing.assert_close(again, whole[list(order)])
    torch.testing.assert_close(OF.line_logits(z[:1], weight, None, contribution, 50, 50, 0.8), whole[:1])


@pytest.mark.parametrize(("labels", "message"), [([0, 9], "outside 0 to 2"), ([0], r"labels must be \[2\]")])
def test_contribution_rejects_labels_that_do_not_fit(labels, message):
    with pytest.raises(ConfigError, match=message):
        OF.line_contribution(torch.rand(2, 4), torch.rand(3, 4), torch.tensor(labels), 3)


def test_percentile_out_of_range():
    with pytest.raises(ConfigError, match="weight_percentile=101 must lie in"):
        OF.line_thresholds(torch.rand(3), torch.rand(2, 3), 10, 101)


def test_nap_by_hand():
    peaked = torch.tensor([[[0.0, 0.0], [0.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])[None]
    # channel 0: maximum 4, mean 1; channel 1: both 1
    assert float(OF.nap_score(peaked, eps=0.0)) == pytest.approx((16 + 1) / 2)
    assert float(OF.nap_score(peaked, eps=1.0)) == pytest.approx((4 + 0.25) / 2)
    assert float(OF.nap_score(peaked, eps=0.0, power=1)) == pytest.approx((4 + 1) / 2)


@given(scale=st.floats(0.1, 100), seed=st.integers(0, 50))
def test_nap_does_not_depend_on_scale_or_place(scale, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(3, 4, 5, 5, generator=generator) + 0.01
    moved = maps.flatten(2)[:, :, torch.randperm(25, generator=generator)].view_as(maps)
    torch.testing.assert_close(OF.nap_score(scale * moved), OF.nap_score(maps), rtol=1e-3, atol=0)
    assert (OF.nap_score(maps) >= 1 - 1e-3).all()


def test_nap_of_silent_channels_is_zero():
    assert torch.equal(OF.nap_score(torch.zeros(2, 3, 4, 4)), torch.zeros(2))


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 1, 1), (2, 5, 7)])
def test_nap_needs_a_map(shape):
    with pytest.raises(ConfigError, match="layer before global pooling"):
        OF.nap_score(torch.rand(shape))


def test_nap_attention_reads_the_class_token():
    attention = torch.full((1, 2, 3, 3), 1 / 3)
    attention[0, 0, 0] = torch.tensor([0.1, 0.2, 0.7])
    attention[0, 1, 0] = torch.tensor([0.5, 0.3, 0.2])
    assert float(OF.nap_attention_score(attention)) == pytest.approx((0.7 + 0.3) / 2)


def test_energy_joins_as_a_geometric_mean():
    score, logits = torch.tensor([4.0, 9.0]), torch.tensor([[0.0, 0.0], [-9.0, -9.0]])
    assert torch.equal(OF.with_energy(score, logits, 0), score)
    half = OF.with_energy(score, logits, 0.5)
    assert float(half[0]) == pytest.approx((4 * np.log(2)) ** 0.5)
    assert half.isfinite().all()
    with pytest.raises(ConfigError, match="must lie in"):
        OF.with_energy(score, logits, 1.5)


def test_nac_ue_mean_is_one_for_what_was_seen_and_zero_for_what_was_not():
    states = torch.tensor([[0.2, 0.8], [0.4, 0.6]])
    assert OF.nac_ue_mean(states, states, bins=50, fill=1) == pytest.approx(1)
    assert OF.nac_ue_mean(states, torch.tensor([[0.99, 0.01]]), bins=50, fill=1) == 0


def test_functional_imports_without_pytorch_ood():
    blocked = (
        "import sys; sys.modules['pytorch_ood'] = None; sys.modules['pytorch_ood.api'] = None\n"
        "import nacme\nnacme.ood.functional.nap_score, nacme.ood.outliers.pseudo_outliers\n"
        "try:\n    nacme.ood.NACUE\nexcept nacme.NacmeError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=True)
    assert "pip install 'nacme[ood]'" in done.stdout
    assert done.stdout.count("\n") == 1
