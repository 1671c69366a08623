"""Models that take several inputs, or inputs by name, or give more than logits, measure as a plain twin does."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nacme import Recorder, measure
from nacme.errors import LayerError, NacmeError
from nacme.measurement import accuracy
from nacme.prediction import are_probabilities
from nacme.settings import CoverageSettings

SETTINGS = CoverageSettings(alpha=20.0, bins=20, fill=2)


class Pair(nn.Module):
    """Two inputs, a linear head."""

    def __init__(self, finish=lambda o: o):
        super().__init__()
        self.a, self.b, self.head, self.finish = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 3), finish

    def forward(self, a, b):
        return self.finish(self.head(torch.relu(self.a(a) + self.b(b))))


class Joined(nn.Module):
    """The same network on one tensor."""

    def __init__(self, pair):
        super().__init__()
        self.pair = pair

    def forward(self, x):
        return self.pair.head(torch.relu(self.pair.a(x[:, :4]) + self.pair.b(x[:, 4:])))


def pair(**options):
    torch.manual_seed(0)
    return Pair(**options)


def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 7, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in "ab"]


def named(labels="labels"):
    return [{"a": x[:, :4], "b": x[:, 4:], labels: y} for x, y in data()]


@pytest.mark.parametrize("layers", [None, ["a"]])
@pytest.mark.parametrize(
    ("finish", "batches"),
    [
        (lambda o: o, [((x[:, :4], x[:, 4:]), y) for x, y in data()]),
        (lambda o: o, named()),
        (lambda o: SimpleNamespace(loss=None, logits=o), named("label")),
        (lambda o: {"hidden": o * 2, "logits": o}, named("y")),
    ],
)
def test_inputs_and_outputs_of_any_form_measure_as_one_tensor(layers, finish, batches):
    model = pair(finish=finish)
    plain = measure(Joined(pair()), data(), layers and [f"pair.{name}" for name in layers], 20.0, 20, 2)
    found = measure(model, batches, layers, 20.0, 20, 2)
    assert (found.nac_me, found.accuracy, found.loss) == (plain.nac_me, plain.accuracy, plain.loss)
    assert accuracy(model, batches) == plain.accuracy


def test_criteria_of_inputs_by_name_are_those_of_one_tensor():
    criteria = ["ece", "gradient_norm", "craft_acc"]
    by_name = Recorder(pair(), {"env0": named()}, settings=SETTINGS, criteria=criteria).record()
    plain = Recorder(Joined(pair()), {"env0": data()}, settings=SETTINGS, criteria=criteria).record()
    assert by_name["craft_acc"] is plain["craft_acc"] is None
    for name in ("nac_me", "val_loss", "ece", "gradient_norm"):
        assert by_name[name] == pytest.approx(plain[name])


def test_a_name_that_the_model_has_no_argument_for_is_said():
    with pytest.raises(LayerError, match="cannot be given 'a', 'b', 'idx'"):
        measure(pair(), [{**batch, "idx": batch["labels"]} for batch in named()])


def test_a_batch_of_names_without_labels_is_refused():
    with pytest.raises(NacmeError, match="keys 'a', 'b' and no labels; give them under one of labels, label, y"):
        measure(pair(), [{"a": batch["a"], "b": batch["b"]} for batch in named()])


def test_probabilities_are_refused_and_no_softmax_is_suggested():
    model = nn.Sequential(nn.Linear(7, 3), nn.Softmax(dim=1))
    for layers in (None, ["0"]):
        with pytest.raises(LayerError, match="without its softmax") as raised:
            measure(model, data(), layers)
        assert "layers=" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_only_what_went_through_a_softmax_are_probabilities(dtype):
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert are_probabilities(F.softmax(logits, dim=1))
    assert not are_probabilities(logits)
    assert not are_probabilities(F.log_softmax(logits, dim=1))
    assert not are_probabilities(torch.sigmoid(logits))
    assert not are_probabilities(torch.ones(3, 1, dtype=dtype))


def test_log_probabilities_serve_as_logits():
    model = nn.Sequential(nn.Linear(7, 3), nn.LogSoftmax(dim=1))
    found = measure(model, data(), ["0:input"], 20.0, 20, 2)
    assert found.nac_me == pytest.approx(measure(model[:1], data(), None, 20.0, 20, 2).nac_me, abs=1e-6)


def test_a_data_set_in_place_of_a_loader_is_refused():
    x, y = data()[0]
    with pytest.raises(NacmeError, match=r"a data set, not a loader.*DataLoader"):
        measure(Joined(pair()), torch.utils.data.TensorDataset(x, y))


def test_several_loaders_in_place_of_one_are_refused():
    with pytest.raises(NacmeError, match="of several loaders give each by itself"):
        measure(Joined(pair()), {"env0": data()})
