"""Training draws for ever with replacement; evaluation reads each sample once a pass."""

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from domainbed_plugins.data.streams import EvalStream, TrainStream


class Squares(Dataset):
    """A dataset that is no TensorDataset."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.tensor([float(index)]), index**2


def numbered(size):
    return TensorDataset(torch.arange(size).float()[:, None], torch.arange(size) ** 2)


@pytest.mark.parametrize("make", [numbered, Squares])
def test_training_stream_draws_full_batches_with_replacement_for_ever(make):
    torch.manual_seed(0)
    batches = iter(TrainStream(make(5), None, 4, 0))
    seen = []
    for _ in range(200):
        x, y = next(batches)
        assert x.shape == (4, 1)
        assert torch.equal(x[:, 0].long() ** 2, y)
        seen += x[:, 0].long().tolist()
    assert len(set(map(tuple, zip(*[iter(seen)] * 4)))) > 100
    counts = torch.tensor(seen).bincount(minlength=5) / len(seen)
    torch.testing.assert_close(counts, torch.full((5,), 0.2), atol=0.06, rtol=0)


def test_training_stream_follows_the_weights():
    torch.manual_seed(0)
    batches = iter(TrainStream(numbered(4), torch.tensor([0.0, 1.0, 3.0, 0.0]), 4, 0))
    seen = torch.cat([next(batches)[0][:, 0].long() for _ in range(200)])
    counts = seen.bincount(minlength=4) / len(seen)
    torch.testing.assert_close(counts, torch.tensor([0.0, 0.25, 0.75, 0.0]), atol=0.06, rtol=0)


@pytest.mark.parametrize("make", [numbered, Squares])
def test_evaluation_stream_gives_each_sample_once_a_pass_in_changing_order(make):
    torch.manual_seed(0)
    loader = EvalStream(make(10), 4, 0)
    assert len(loader) == 3
    passes = []
    for _ in range(2):
        batches = list(loader)
        assert [len(x) for x, _ in batches] == [4, 4, 2]
        for x, y in batches:
            assert torch.equal(x[:, 0].long() ** 2, y)
        passes.append(torch.cat([x for x, _ in batches])[:, 0].long().tolist())
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(10))
    assert passes[0] != passes[1]


def test_streams_read_tensors_through_worker_processes_too():
    assert sorted(torch.cat([y for _, y in EvalStream(numbered(6), 4, 1)]).tolist()) == [0, 1, 4, 9, 16, 25]
