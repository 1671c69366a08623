"""One pass for accuracy, loss and coverage: the authors' end-to-end numbers, and a model left as it was."""

import copy
import math
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

from nacme import measure
from nacme.errors import ConfigError, DegenerateCoverageWarning, LayerError, NacmeError

pytestmark = pytest.mark.filterwarnings("ignore::nacme.errors.DegenerateCoverageWarning")


def batches(x, y, size=16):
    return list(zip(x.split(size), y.split(size)))


def images(count=50, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.randint(classes, (count,), generator=generator)


def convnet(classes=4):
    """Small, with everything that behaves differently in training mode, and in-place operations."""
    torch.manual_seed(1)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 6, 3, padding=1),
            bn=nn.BatchNorm2d(6),
            relu=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(6, 5, 3, padding=1),
            relu2=nn.ReLU(inplace=True),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(0.5),
            fc=nn.Linear(5, classes),
        )
    )


def plain_loop(model, loader):
    """Accuracy and mean cross-entropy as anyone would write them."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        logits = torch.cat([model(x) for x, _ in loader])
    labels = torch.cat([y for _, y in loader])
    loss = nn.functional.cross_entropy(logits, labels)
    return float((logits.argmax(1) == labels).double().mean()), float(loss)


@pytest.mark.parametrize("number", ["01", "02"])
class TestGolden:
    def network(self, data):
        net = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 16, 3, padding=1),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(16, 16, 3, padding=1),
                relu2=nn.ReLU(),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(16, len(data["param.fc.bias"])),
            )
        )
        net.load_state_dict({key[6:]: value for key, value in data.items() if key.startswith("param.")})
        x = (data["images_q"].float() - 7.5) / 4
        return net, batches(x, data["labels"], int(data["batch_size"]))

    @pytest.mark.parametrize("layers", ["avgpool", "relu2", "relu1", None, "fc:input"])
    def test_one_layer(self, golden, number, layers):
        data = golden(f"nac_me_end_to_end_{number}")
        net, loader = self.network(data)
        stored = layers if layers in ("avgpool", "relu2", "relu1") else "avgpool"
        for index, alpha in enumerate(data["alphas"].tolist()):
            found = measure(net, loader, layers, alpha, bins=50, fill=20, correct_only=False)
            assert found.accuracy == float(data["accuracy"])
            assert found.nac_me == pytest.approx(float(data[f"{stored}_a{index}_score"]), abs=1e-6)
            assert found.num_samples == found.num_counted == 200

    def test_two_layers_in_one_pass(self, golden, number):
        data = golden(f"nac_me_end_to_end_{number}")
        net, loader = self.network(data)
        for index, alpha in enumerate(data["alphas"].tolist()):
            found = measure(net, loader, ["avgpool", "relu2"], alpha, 50, 20, correct_only=False)
            for layer, value in found.per_layer.items():
                assert value == pytest.approx(float(data[f"both_{layer}_a{index}_score"]), abs=1e-6)
            assert found.nac_me == pytest.approx(sum(found.per_layer.values()) / 2)

    def test_correct_only(self, golden, number):
        data = golden(f"nac_me_end_to_end_{number}")
        net, loader = self.network(data)
        for index, alpha in enumerate(data["alphas"].tolist()):
            found = measure(net, loader, "avgpool", alpha, 50, 20)
            stored = float(data[f"avgpool_correct_only_a{index}_score"])
            assert found.nac_me == pytest.approx(stored, abs=1e-6)
            assert found.num_counted == int(data["correct_flags"].sum())


def test_accuracy_and_loss_equal_a_plain_loop():
    model, loader = convnet(), batches(*images())
    accuracy, loss = plain_loop(model, loader)
    found = measure(model, loader)
    assert found.accuracy == accuracy
    assert found.loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("layers", [None, "conv", ["bn", "avgpool"]])
class TestModelIsLeftAsItWas:
    def test_modes_parameters_hooks_and_gradients(self, layers):
        model = convnet().train()
        model.bn.eval()
        model.conv2.weight.requires_grad_(False)
        model(images()[0]).sum().backward()
        before = {
            "modes": [m.training for m in model.modules()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
            "state": copy.deepcopy(model.state_dict()),
            "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        }
        measure(model, batches(*images()), layers)
        assert [m.training for m in model.modules()] == before["modes"]
        assert [p.requires_grad for p in model.parameters()] == before["requires_grad"]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        assert hooks == before["hooks"]
        for name, value in model.state_dict().items():
            assert torch.equal(value, before["state"][name]), name
        for parameter, gradient in zip(model.parameters(), before["gradients"]):
            assert (parameter.grad is None) == (gradient is None)
            assert gradient is None or torch.equal(parameter.grad, gradient)

    def test_random_state(self, layers):
        torch.manual_seed(7)
        state = torch.get_rng_state()
        measure(convnet_after_seed := convnet(), batches(*images()), layers)
        torch.set_rng_state(state)
        before = torch.get_rng_state()
        measure(convnet_after_seed, batches(*images()), layers)
        assert torch.equal(torch.get_rng_state(), before)

    def test_after_an_error(self, layers):
        model = convnet().train()
        x, y = images()
        broken = [*batches(x, y), (torch.randn(4, 2, 8, 8), y[:4])]
        with pytest.raises(RuntimeError):
            measure(model, broken, layers)
        assert model.training
        assert all(p.requires_grad for p in model.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_predicting_that_draws_random_numbers_draws_as_many_as_a_plain_pass():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 3)

        def predict(self, x):
            return self.head(torch.cat([x, torch.randn(len(x), 2)], dim=1))

    model, loader = Noisy(), [(torch.randn(5, 4), torch.randint(3, (5,))) for _ in range(3)]
    torch.manual_seed(0)
    for x, _ in loader:
        model.predict(x)
    expected = torch.get_rng_state()
    for layers in (None, "head:input"):
        torch.manual_seed(0)
        measure(model, loader, layers)
        assert torch.equal(torch.get_rng_state(), expected)


def test_penultimate_closed_form_equals_autograd_at_the_same_layer():
    """``conv2`` forces a graph; the avgpool reading beside it must equal the closed form's."""
    model, loader = convnet(), batches(*images())
    settings = {"alpha": 50.0, "fill": 2, "correct_only": False}
    by_graph = measure(model, loader, ["conv2", "avgpool"], **settings)
    closed = measure(model, loader, None, **settings)
    assert by_graph.per_layer["avgpool"] == pytest.approx(closed.nac_me, abs=1e-6)


def test_in_place_operation_above_a_tap_leaves_the_reading_alone():
    """The same network with and without in-place activations measures the same."""
    model, loader = convnet(), batches(*images())
    plain = copy.deepcopy(model)
    plain.relu.inplace = plain.relu2.inplace = False
    for layer in ("bn", "conv2"):
        settings = {"alpha": 50.0, "fill": 2, "correct_only": False}
        assert measure(model, loader, layer, **settings) == measure(plain, loader, layer, **settings)


def test_tokens():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(6, 8)
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.norm(self.embed(x))[:, 0])

    loader = [(torch.randn(5, 4, 6), torch.randint(3, (5,)))]
    found = measure(Tokens(), loader, "norm", alpha=10.0, fill=1, correct_only=False)
    assert 0 < found.nac_me < 1
    assert found.per_layer.keys() == {"norm"}


def test_binary_head_of_one_logit():
    model = nn.Linear(4, 1)
    x = torch.randn(30, 4)
    y = (model(x)[:, 0] > 0).long()
    y[:3] = 1 - y[:3]
    found = measure(model, [(x, y)], alpha=10.0, fill=1)
    assert found.accuracy == pytest.approx(0.9)
    expected = nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y.float()).item()
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.nac_me > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layers", [None, "conv"])
def test_other_precisions(dtype, layers):
    x, y = images()
    full = measure(convnet(), batches(x, y), layers, alpha=1.0, fill=2, correct_only=False)
    other = measure(convnet().to(dtype), batches(x, y), layers, alpha=1.0, fill=2, correct_only=False)
    assert other.nac_me == pytest.approx(full.nac_me, abs=1e-6 if dtype == torch.float64 else 0.05)
    assert other.loss == pytest.approx(full.loss, rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layers", [None, ["conv", "avgpool"]])
def test_cuda_equals_cpu(layers):
    loader = batches(*images())
    settings = {"alpha": 10.0, "fill": 2}
    on_cpu = measure(convnet(), loader, layers, **settings)
    on_cuda = measure(convnet().cuda(), loader, layers, **settings)
    assert on_cuda.accuracy == on_cpu.accuracy
    assert on_cuda.nac_me == pytest.approx(on_cpu.nac_me, abs=1e-3)


def test_auto_alpha_does_not_depend_on_the_scale_of_the_features():
    loader = batches(*images())
    model = convnet()
    small = measure(model, loader, alpha="auto", fill=0.1, correct_only=False)
    assert not small.degenerate
    scaled = copy.deepcopy(model)
    # features ten times as large behind a head ten times as small give the same logits and the same z * g
    scaled.conv2.weight.data *= 10
    scaled.conv2.bias.data *= 10
    scaled.fc.weight.data /= 10
    again = measure(scaled, loader, alpha="auto", fill=0.1, correct_only=False)
    assert again.nac_me == pytest.approx(small.nac_me, abs=1e-6)
    fixed = measure(model, loader, alpha=small.alpha["fc:input"], fill=0.1, correct_only=False)
    assert fixed.nac_me == pytest.approx(small.nac_me, abs=1e-6)


@pytest.mark.filterwarnings("default")
def test_degenerate_coverage_is_said_once():
    with pytest.warns(DegenerateCoverageWarning, match=r"fill 1\.0 bins") as caught:
        found = measure(convnet(), batches(*images()), alpha=1e-6)
    assert len(caught) == 1
    assert found.degenerate
    assert found.occupied_bins == 1.0


def test_nan_logits_give_no_coverage_rather_than_a_small_one():
    model = convnet()
    model.fc.weight.data[0, 0] = math.nan
    found = measure(model, batches(*images()))
    assert math.isnan(found.nac_me)
    assert math.isnan(found.loss)


def test_a_later_batch_of_one_and_an_uneven_last_batch():
    x, y = images(33)
    assert measure(convnet(), batches(x, y, 16)).num_samples == 33


class TestBadInput:
    def test_unknown_layer_offers_near_names(self):
        with pytest.raises(LayerError, match=r"no layer 'avgpol'; did you mean 'avgpool'"):
            measure(convnet(), batches(*images()), "avgpol")

    def test_layer_that_does_not_run(self):
        model = convnet()
        model.predict = lambda x: model.fc(x.mean((2, 3)).repeat(1, 2)[:, :5])
        with pytest.raises(LayerError, match="'conv' does not run"):
            measure(model, batches(*images()), "conv")

    def test_layer_that_gives_no_tensor(self):
        class Pair(nn.Module):
            def forward(self, x):
                return x, x

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.pair, self.head = Pair(), nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.pair(x)[0])

        with pytest.raises(LayerError, match="'pair' gives tuple"):
            measure(Net(), [(torch.randn(3, 4), torch.zeros(3, dtype=torch.long))], "pair")

    def test_layer_whose_first_dimension_is_not_the_batch(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.turn, self.head = nn.Identity(), nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.turn(x.transpose(0, 1)).transpose(0, 1)[:, 0])

        with pytest.raises(LayerError, match="first dimension must be the batch"):
            measure(Net(), [(torch.randn(3, 5, 4), torch.zeros(3, dtype=torch.long))], "turn")

    def test_no_linear_head(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

            def forward(self, x):
                return self.head(self.body(x)) * 2

        data = [(torch.randn(6, 4), torch.randint(2, (6,)))]
        with pytest.raises(LayerError, match=r"no linear layer .* name layers"):
            measure(Scaled(), data)
        assert measure(Scaled(), data, "body").num_samples == 6

    def test_a_subclass_of_linear_that_computes_something_else_is_no_linear_head(self):
        class Cosine(nn.Linear):
            def forward(self, x):
                return nn.functional.linear(nn.functional.normalize(x), self.weight, self.bias)

        with pytest.raises(LayerError, match="no linear layer"):
            measure(Cosine(4, 3), [(torch.randn(6, 4) * 5, torch.zeros(6, dtype=torch.long))])

    def test_empty_loader(self):
        with pytest.raises(NacmeError, match="no samples"):
            measure(convnet(), [])

    def test_loader_without_labels(self):
        with pytest.raises(NacmeError, match=r"\(inputs, labels\)"):
            measure(convnet(), [images()[0]])

    def test_logits_of_a_wrong_shape(self):
        with pytest.raises(LayerError, match=r"shape \[B, C\], not \[4, 2, 3\]"):
            measure(nn.Linear(5, 3), [(torch.randn(4, 2, 5), torch.zeros(4, dtype=torch.long))])

    @pytest.mark.parametrize("alpha", ["automatic", 0.0, math.inf])
    def test_alpha(self, alpha):
        with pytest.raises(ConfigError, match="alpha"):
            measure(convnet(), batches(*images()), alpha=alpha)


def test_measuring_imports_only_what_it_uses():
    """torchmetrics brings SciPy, Matplotlib and torchvision, whose import costs more than PyTorch's."""
    script = """
import sys, torch, nacme
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
found = nacme.measure(model, [(torch.randn(9, 4), torch.arange(9) % 3)], alpha=10.0, fill=1, correct_only=False)
assert found.num_counted == 9
heavy = {"torchmetrics", "scipy", "matplotlib", "torchvision", "pandas"} & set(sys.modules)
assert not heavy, heavy
import torchmetrics
assert issubclass(nacme.NeuronActivationCoverage, torchmetrics.Metric)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
