"""Coverage: the authors' counts and scores, merging, and distributed processes."""

import math
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from nacme import NeuronActivationCoverage
from nacme.coverage import bin_edges, bin_indices, count_states
from nacme.errors import ConfigError


def brute_force_counts(states, edges):
    """Compare every state with every bin, as the definition reads."""
    inside = (states[:, None, :] >= edges[:-1, None]) & (states[:, None, :] < edges[1:, None])
    return inside.sum(dim=0).T


def covered(states, bins, fill, spacing="linear", batches=1):
    metric = NeuronActivationCoverage(states.shape[1], bins=bins, fill=fill, spacing=spacing)
    for part in states.tensor_split(batches):
        metric.update(part)
    return metric


class TestGolden:
    @pytest.mark.parametrize("number", ["01", "02"])
    @pytest.mark.parametrize("group", ["plain", "dy", "edge", "odd", "co", "all"])
    def test_nac_me(self, golden, number, group):
        data = golden(f"nac_me_{number}")
        states = data[f"{group}_states"]
        for bins, fill in data["dy_conf_M_O" if group == "dy" else "conf_M_O"].tolist():
            # a state planted on an edge can only be compared where torch gives the edges their last bit
            if group == "edge" and not torch.equal(bin_edges(int(bins)), data[f"edges_M{int(bins)}"]):
                pytest.skip("this processor's edges differ in the last bit from the stored ones")
            suffix = f"M{int(bins)}_O{int(fill)}"
            metric = covered(states, int(bins), int(fill), batches=3)
            assert torch.equal(metric.counts.T.float(), data[f"{group}_t_act_{suffix}"])
            torch.testing.assert_close(metric.compute(), data[f"{group}_score_avg_{suffix}"], rtol=0, atol=1e-6)
            if f"{group}_cov_neuron_{suffix}" in data:
                torch.testing.assert_close(
                    metric.per_neuron(), data[f"{group}_cov_neuron_{suffix}"], rtol=0, atol=1e-6
                )

    @pytest.mark.parametrize("number", ["01", "02"])
    @pytest.mark.parametrize("group", ["plain", "edge"])
    @pytest.mark.parametrize("layer", ["l0", "l1"])
    def test_nac_ue(self, golden, number, group, layer):
        data = golden(f"nac_ue_{number}")
        bins, fill = (int(value) for value in data[f"{layer}_M_O"])
        torch.testing.assert_close(bin_edges(bins, "log"), data[f"{layer}_edges"], rtol=0, atol=1e-15)
        metric = covered(data[f"{group}_fit_{layer}_state"], bins, fill, "log", batches=4)
        assert torch.equal(metric.counts.T.float(), data[f"{group}_{layer}_t_act"].float())
        scores = metric.likelihood(data[f"{group}_test_{layer}_state"])
        torch.testing.assert_close(scores, data[f"{group}_{layer}_score"].float(), rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    bins=st.integers(2, 40),
    neurons=st.integers(1, 5),
    samples=st.integers(0, 30),
    spacing=st.sampled_from(["linear", "log"]),
    seed=st.integers(0, 2**31),
)
def test_counts_equal_the_definition(bins, neurons, samples, spacing, seed):
    bins = bins if spacing == "linear" else max(4, bins + bins % 2)
    states = torch.rand(samples, neurons, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.2
    edges = bin_edges(bins, spacing)
    assert torch.equal(count_states(states, edges), brute_force_counts(states, edges))
    assert torch.equal(count_states(states, edges, spacing), brute_force_counts(states, edges))


@pytest.mark.parametrize("bins", [2, 3, 9, 50, 999, 1000, 2**15, 2**15 + 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_equal_bins_are_found_exactly_at_edges_and_their_neighbours(bins, dtype):
    edges = bin_edges(bins)
    odd = torch.tensor([-0.1, -0.0, 0.0, 1.0, 1.2, math.nan, math.inf, -math.inf, 1e-45, -1e-45, 3e38, -3e38])
    exact = edges.to(dtype)
    neighbours = [exact, torch.nextafter(exact, exact + 1), torch.nextafter(exact, exact - 1)]
    random = torch.rand(10_000, generator=torch.Generator().manual_seed(bins)) * 1.4 - 0.2
    states = torch.cat([odd.to(dtype), *neighbours, random.to(dtype)]).unsqueeze(0)
    found = bin_indices(states, edges, "linear")
    assert torch.equal(found, bin_indices(states, edges))


def test_a_row_counts_unless_it_is_nan_throughout():
    states = torch.full((4, 3), math.nan)
    states[1] = -math.inf
    states[2, 1] = 0.5
    states[3] = math.inf
    assert covered(states, 5, 1).num_samples == 3


def test_halves_merged_equal_the_whole():
    states = torch.rand(101, 7)
    whole = covered(states, 20, 3)
    left, right = covered(states[:40], 20, 3), covered(states[40:], 20, 3)
    left.merge_state(right)
    assert torch.equal(left.counts, whole.counts)
    assert left.num_samples == whole.num_samples == 101
    assert left.compute() == whole.compute()


def test_two_processes_equal_one(tmp_path):
    """A real two-process gloo run synchronizes counts by summing them."""
    script = tmp_path / "worker.py"
    script.write_text(
        """
import sys, torch, torch.distributed as dist
from nacme import NeuronActivationCoverage
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
states = torch.rand(101, 7, generator=torch.Generator().manual_seed(0))
metric = NeuronActivationCoverage(7, bins=20, fill=0.05)
metric.update(states[:40] if rank == 0 else states[40:])
synced = metric.compute()
whole = NeuronActivationCoverage(7, bins=20, fill=0.05, sync_on_compute=False)
whole.update(states)
assert synced == whole.compute(), (synced, whole.compute())
dist.destroy_process_group()
"""
    )
    command = [sys.executable, str(script)]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meeting")], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for worker in workers:
        _, stderr = worker.communicate(timeout=120)
        assert worker.returncode == 0, stderr.decode()


def test_worked_case():
    """Bins of M=3 are [0, .5) and [.5, 1): neuron 0 fills both, neuron 1 the first alone; the mean is over 3."""
    metric = covered(torch.tensor([[0.2, 0.2], [0.7, 0.3]]), bins=3, fill=1)
    assert metric.counts.tolist() == [[1, 1], [2, 0]]
    np.testing.assert_allclose(metric.per_neuron(), [2 / 3, 1 / 3], rtol=1e-6)
    assert metric.occupied_bins() == 1.5
    assert metric.full_bins() == 1.5
    assert metric.full_bins(fill=2) == 0.5


def test_without_a_full_bin_coverage_only_counts_states():
    """What `full_bins` is recorded for: coverage is then accuracy in disguise, however spread the states are."""
    states = torch.rand(300, 8, generator=torch.Generator().manual_seed(0)) * 0.999
    for count in (100, 200, 300):
        metric = covered(states[:count], bins=50, fill=500)
        assert metric.full_bins() == 0
        np.testing.assert_allclose(metric.per_neuron(), count / (500 * 50), rtol=1e-5)


def test_saturated_state_counts_in_no_bin():
    assert covered(torch.ones(4, 1), 50, 1).counts.sum() == 0
    assert covered(torch.ones(4, 1), 50, 1, "log").counts.sum() == 4


def test_fraction_fill_does_not_grow_with_the_data():
    states = torch.rand(50, 4)
    once, twice = covered(states, 10, 0.1), covered(states.repeat(2, 1), 10, 0.1)
    assert once.compute() == twice.compute()
    assert covered(states, 10, 5).compute() == once.compute()


def test_fraction_of_nothing_is_undefined():
    assert math.isnan(NeuronActivationCoverage(2, fill=0.1).compute())


def test_masked_rows_do_not_count():
    states = torch.rand(6, 3)
    masked = states.clone()
    masked[::2] = math.nan
    assert torch.equal(covered(masked, 10, 1).counts, covered(states[1::2], 10, 1).counts)
    assert covered(masked, 10, 1).num_samples == 3


def test_reset_and_state_dict():
    metric = covered(torch.rand(9, 3), 10, 2)
    metric.reset()
    assert metric.counts.sum() == 0


def test_likelihood_of_a_state_outside_every_bin_is_zero():
    metric = covered(torch.rand(500, 2), 10, 1)
    assert metric.likelihood(torch.tensor([[1.0, 1.0], [0.5, 0.5]])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bins": 1}, "bins=1"),
        ({"bins": 7, "spacing": "log"}, "even"),
        ({"spacing": "cubic"}, "'cubic'"),
        ({"fill": 0}, "fill=0"),
        ({"fill": 1.5}, "fraction"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ConfigError, match=message):
        NeuronActivationCoverage(3, **arguments)


def test_wrong_width_is_named():
    with pytest.raises(ConfigError, match=r"\[B, 3\], not \[5, 4\]"):
        NeuronActivationCoverage(3).update(torch.rand(5, 4))
