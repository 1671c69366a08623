"""Which checkpoints become members, and means of weights and probabilities."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from domainbed_plugins.averaging.ensemble import Ensemble, log_mean, probabilities
from domainbed_plugins.averaging.members import loss_valley
from domainbed_plugins.averaging.weights import MeanState
from domainbed_plugins.runs.checkpoints import CheckpointError


def by_the_paper(losses, n_s, n_e, ratio):
    """Algorithm 1 of 2102.08604, line by line, positions from 0."""
    start, end, limit = None, len(losses) - 1, None
    for i in range(len(losses)):
        if start is None:
            window = losses[max(0, i - n_s + 1) : i + 1]
            if len(window) == n_s and window[0] == min(window):
                start = i - n_s + 1
                limit = ratio / n_s * sum(window)
        elif i - n_e + 1 > start and limit < min(losses[i - n_e + 1 : i + 1]):
            end = i - n_e
            break
    return (start, end) if start is not None else (len(losses) - 1, len(losses) - 1)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=25), st.integers(1, 3), st.integers(1, 4))
def test_the_loss_valley_is_the_papers(losses, n_s, n_e):
    found = loss_valley(losses, n_s, n_e, 1.3)
    assert found == by_the_paper(losses, n_s, n_e, 1.3)
    assert 0 <= found[0] <= found[1] < len(losses)


def test_a_valley_by_hand():
    losses = [9, 5, 3, 2, 2, 3, 2, 8, 8, 8, 8, 8, 8, 2]
    assert loss_valley(losses) == (3, 6)
    assert loss_valley([3, 2, 1]) == (2, 2)


def states(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {"w": torch.randn(3, 2, generator=generator), "n": torch.tensor(i + 4), "empty": torch.empty(0)}
        for i in range(count)
    ]


def mean_of(parts):
    mean = MeanState()
    for part in parts:
        mean = mean.added(part)
    return mean.state()


@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_a_soup_of_copies_is_the_network_itself(copies):
    (one,) = states(1)
    found = mean_of([one] * copies)
    assert found.keys() == one.keys()
    assert all(torch.equal(found[key], one[key]) and found[key].dtype == one[key].dtype for key in one)


def test_a_mean_is_that_of_the_numbers():
    parts = states(5)
    found = mean_of(parts)
    assert torch.allclose(found["w"], torch.stack([part["w"] for part in parts]).mean(0), atol=1e-7)
    assert found["n"] == 4


def test_trying_a_member_leaves_the_mean_as_it_was():
    a, b, c = states(3)
    mean = MeanState().added(a).added(b)
    mean.added(c)
    assert torch.allclose(mean.state()["w"], (a["w"] + b["w"]) / 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"w": torch.zeros(2, 2)}, r"w has shapes \[3, 2\] and \[2, 2\]"),
        ({"more": torch.zeros(1)}, "only one of two has more"),
    ],
)
def test_other_architectures_are_refused_with_the_reason(change, reason):
    (one,) = states(1)
    with pytest.raises(CheckpointError, match=reason):
        MeanState().added(one).added({**one, **change})


@pytest.mark.parametrize("classes", [1, 4])
def test_an_ensemble_is_the_mean_probability_and_of_one_its_member(classes):
    torch.manual_seed(0)
    members = [nn.Linear(3, classes) for _ in range(3)]
    x = torch.randn(6, 3)
    wanted = torch.stack([probabilities(member(x)) for member in members]).mean(0)
    assert torch.allclose(probabilities(Ensemble(members)(x)), wanted, atol=1e-6)
    one = Ensemble(members[:1])
    assert torch.allclose(probabilities(one.predict(x)), probabilities(members[0](x)), atol=1e-6)


def test_the_logarithm_of_nothing_is_a_number():
    assert log_mean(torch.tensor([[0.0, 1.0]])).isfinite().all()
    assert log_mean(torch.tensor([[0.0], [1.0]])).isfinite().all()
