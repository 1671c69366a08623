"""States and gradients: the authors' numbers, and autograd as an independent reference."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from nacme import kl_gradients, neuron_states
from nacme.errors import ConfigError, LayerError
from nacme.states import head_gradients, pool_positions

GRADIENT_TOLERANCE = 2e-5


def state_tolerance(alpha, product):
    """The golden files' own suggestion: how far a float32 state may be from the authors'."""
    return min(1e-6 + 1e-6 * alpha * float(product.abs().max()) / 4, 1e-4)


def logits_with_graph(head, values):
    values = values.clone().requires_grad_()
    return head(values), values


@pytest.mark.parametrize("number", ["01", "02", "03"])
class TestGolden:
    def test_vector_states(self, golden, number):
        data = golden(f"nac_states_{number}")
        z, weight, bias = data["vec_z"], data["vec_weight"], data["vec_bias"]
        logits, leaf = logits_with_graph(lambda v: v @ weight.T + bias, z)
        (gradient,) = kl_gradients(logits, [leaf])
        torch.testing.assert_close(gradient, data["vec_klgrad"], rtol=0, atol=GRADIENT_TOLERANCE)
        closed = head_gradients(data["vec_logits"], weight)
        torch.testing.assert_close(closed, data["vec_klgrad"], rtol=0, atol=GRADIENT_TOLERANCE)
        for index, alpha in enumerate(data["alphas"].tolist()):
            both = neuron_states(z, data["vec_klgrad"], alpha)
            tolerance = state_tolerance(alpha, z * data["vec_klgrad"])
            torch.testing.assert_close(both, data["vec_me_state_ogkl"][index], rtol=0, atol=tolerance)
            alone = neuron_states(z, None, alpha)
            torch.testing.assert_close(
                alone, data["vec_me_state_o"][index], rtol=0, atol=state_tolerance(alpha, z)
            )

    @pytest.mark.parametrize("layer", ["map", "pool"])
    def test_map_states_are_products_of_sums(self, golden, number, layer):
        data = golden(f"nac_states_{number}")
        weight, bias = data["sp_weight"], data["sp_bias"]
        if layer == "map":
            logits, leaf = logits_with_graph(lambda v: v.mean((2, 3)) @ weight.T + bias, data["sp_fmap"])
        else:
            logits, leaf = logits_with_graph(lambda v: v.flatten(1) @ weight.T + bias, data["sp_pool"])
        (gradient,) = kl_gradients(logits, [leaf])
        torch.testing.assert_close(gradient, data[f"sp_klgrad_{layer}"], rtol=0, atol=GRADIENT_TOLERANCE)
        product = data[f"sp_{layer}_me_o"] * data[f"sp_{layer}_me_g"]
        expected = data[f"sp_{layer}_me_state_ogkl"]
        for index, alpha in enumerate(data["alphas"].tolist()):
            states = neuron_states(leaf.detach(), gradient, alpha)
            torch.testing.assert_close(states, expected[index], rtol=0, atol=state_tolerance(alpha, product))

    def test_gradient_that_varies_over_space(self, golden, number):
        data = golden(f"nac_states_{number}")
        logits, leaf = logits_with_graph(
            lambda v: v.flatten(1) @ data["flat_weight"].T + data["flat_bias"], data["sp_fmap"]
        )
        (gradient,) = kl_gradients(logits, [leaf])
        torch.testing.assert_close(pool_positions(gradient), data["flat_me_g"], rtol=0, atol=1e-4)
        product = data["flat_me_o"] * data["flat_me_g"]
        for index, alpha in enumerate(data["alphas"].tolist()):
            states = neuron_states(data["sp_fmap"], gradient, alpha)
            torch.testing.assert_close(
                states, data["flat_me_state_ogkl"][index], rtol=0, atol=state_tolerance(alpha, product)
            )

    @pytest.mark.parametrize("head", ["cls", "mean"])
    @pytest.mark.parametrize("pool", ["sum", "first"])
    def test_token_states(self, golden, number, head, pool):
        data = golden(f"nac_states_{number}")
        read = (lambda v: v[:, 0]) if head == "cls" else (lambda v: v.mean(1))
        logits, leaf = logits_with_graph(
            lambda v: read(v) @ data["vit_weight"].T + data["vit_bias"], data["vit_hidden"]
        )
        (gradient,) = kl_gradients(logits, [leaf])
        torch.testing.assert_close(gradient, data[f"vit_{head}_klgrad"], rtol=0, atol=GRADIENT_TOLERANCE)
        product = data[f"vit_{head}_{pool}_o"] * data[f"vit_{head}_{pool}_g"]
        for index, alpha in enumerate(data["alphas"].tolist()):
            states = neuron_states(data["vit_hidden"], gradient, alpha, pool=pool)
            expected = data[f"vit_{head}_{pool}_state_ogkl"][index]
            torch.testing.assert_close(states, expected, rtol=0, atol=state_tolerance(alpha, product))


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(1, 6),
    neurons=st.integers(1, 12),
    classes=st.integers(1, 9),
    scale=st.floats(0.01, 20),
    seed=st.integers(0, 2**31),
)
def test_closed_form_equals_autograd(batch, neurons, classes, scale, seed):
    """``(p - 1/C) W``, also for a single logit, to 1e-6 in float64."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, neurons, dtype=torch.float64, generator=generator).mul(scale).requires_grad_()
    weight = torch.randn(classes, neurons, dtype=torch.float64, generator=generator)
    logits = z @ weight.T + torch.randn(classes, dtype=torch.float64, generator=generator)
    (expected,) = kl_gradients(logits, [z])
    torch.testing.assert_close(head_gradients(logits.detach(), weight), expected, rtol=1e-6, atol=1e-6)


def test_binary_head_equals_its_two_logit_twin():
    z = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    head = torch.randn(1, 4, dtype=torch.float64)
    (one,) = kl_gradients(z @ head.T, [z])
    (two,) = kl_gradients(z @ torch.cat([torch.zeros_like(head), head]).T, [z])
    torch.testing.assert_close(one, two)


def test_several_activations_in_one_backward_pass():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    first = model[0](torch.randn(6, 3))
    second = model[1](first)
    gradients = kl_gradients(model[2](second), [first, second])
    assert [g.shape for g in gradients] == [first.shape, second.shape]
    torch.testing.assert_close(gradients[0], gradients[1] * (first > 0))


def test_gradient_is_per_sample():
    model = nn.Linear(3, 4)
    x = torch.randn(5, 3, requires_grad=True)
    (together,) = kl_gradients(model(x), [x])
    for row in range(5):
        alone = x[row : row + 1].detach().requires_grad_()
        torch.testing.assert_close(together[row : row + 1], kl_gradients(model(alone), [alone])[0])


def test_rectified_zero_has_state_one_half():
    assert neuron_states(torch.zeros(1, 3), torch.randn(1, 3), 100.0).eq(0.5).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(dtype):
    states = neuron_states(torch.ones(2, 3, dtype=dtype), torch.ones(2, 3, dtype=dtype), 1.0)
    assert states.dtype == torch.float32
    np.testing.assert_allclose(states, 1 / (1 + np.exp(-1)), rtol=1e-6)


def test_unrelated_activation_is_named():
    z = torch.randn(2, 3, requires_grad=True)
    with pytest.raises(LayerError, match="do not depend on activation 1"):
        kl_gradients(z * 2, [z, torch.randn(2, 3, requires_grad=True)])


def test_logits_without_graph_are_refused():
    with pytest.raises(LayerError, match="no graph"):
        kl_gradients(torch.randn(2, 3), [torch.randn(2, 3)])


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(ConfigError, match="alpha"):
        neuron_states(torch.ones(1, 1), None, alpha)


def test_unknown_pooling_and_shape_mismatch():
    with pytest.raises(ConfigError, match="pool='mean'"):
        neuron_states(torch.ones(1, 2, 3), None, 1.0, pool="mean")
    with pytest.raises(ConfigError, match="class token"):
        neuron_states(torch.ones(1, 2, 3, 3), None, 1.0, pool="first")
    with pytest.raises(ConfigError, match="one shape"):
        neuron_states(torch.ones(1, 2), torch.ones(1, 3), 1.0)
