from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, Subset, TensorDataset

from domainbed_plugins.testbed.lib import misc

SHUFFLED = [8, 5, 0, 2, 1, 9, 7, 3, 6, 4]  # by DomainBed's split_dataset, seed 7


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


def test_seed_hash_gives_domainbeds_numbers():
    assert misc.seed_hash(0, 0) == 894182419
    assert misc.seed_hash(3, "lr") == 1414497592


def test_split_dataset_gives_domainbeds_parts():
    first, rest = misc.split_dataset(numbered(10), 4, 7)
    assert first.tensors[0].flatten().tolist() == SHUFFLED[:4]
    assert rest.tensors[0].flatten().tolist() == SHUFFLED[4:]
    first, rest = misc.split_dataset(Squares(10), 4, 7)
    assert isinstance(first, Subset)
    assert [int(x) for x, _ in first] == SHUFFLED[:4]
    assert [int(x) for x, _ in rest] == SHUFFLED[4:]


@given(size=st.integers(0, 40), n=st.integers(0, 40), seed=st.integers(0, 2**31 - 1))
def test_split_dataset_loses_and_repeats_nothing(size, n, seed):
    if n > size:
        with pytest.raises(ValueError, match=f"n={n} .* {size}"):
            misc.split_dataset(numbered(size), n, seed)
        return
    first, rest = misc.split_dataset(numbered(size), n, seed)
    assert len(first) == n
    assert sorted(torch.cat([first.tensors[1], rest.tensors[1]]).tolist()) == [i**2 for i in range(size)]


def test_balanced_weights_give_each_class_the_same_chance():
    labels = torch.tensor([0, 0, 0, 1, 5, 5])
    weights = misc.make_weights_for_balanced_classes(TensorDataset(torch.zeros(6, 1), labels))
    torch.testing.assert_close(weights, torch.tensor([1 / 9, 1 / 9, 1 / 9, 1 / 3, 1 / 6, 1 / 6]))


def test_pairs_form_a_ring_and_are_cut_to_the_shorter():
    minibatches = [(torch.full((size, 1), i), torch.full((size,), i)) for i, size in enumerate((3, 5, 4))]
    torch.manual_seed(0)
    pairs = misc.random_pairs_of_minibatches(minibatches)
    firsts = [int(yi[0]) for (_, yi), _ in pairs]
    seconds = [int(yj[0]) for _, (_, yj) in pairs]
    assert sorted(firsts) == [0, 1, 2]
    assert seconds == firsts[1:] + firsts[:1]
    sizes = (3, 5, 4)
    for ((xi, yi), (xj, yj)), i, j in zip(pairs, firsts, seconds):
        assert len(xi) == len(yi) == len(xj) == len(yj) == min(sizes[i], sizes[j])


def test_print_row_pads_and_cuts(capsys):
    misc.print_row(["step", 3, 0.5, 1.0e-12], colwidth=6)
    misc.print_row(["step", 3], colwidth=6, latex=True)
    assert capsys.readouterr().out == "step    3       0.5000  0.0000 \nstep   & 3      \\\\\n"


def test_tee_writes_to_both_at_once_and_continues_the_file(tmp_path, capsys):
    path = tmp_path / "out.txt"
    path.write_text("before\n")
    tee = misc.Tee(str(path))
    print("now", file=tee)
    assert path.read_text() == "before\nnow\n"
    assert capsys.readouterr().out == "now\n"
    assert tee.stdout is sys.stdout
    tee.file.close()
