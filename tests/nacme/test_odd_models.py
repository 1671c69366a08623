"""Models and data that are odd: measured right, compared with float64 autograd, or refused with the reason."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nacme import Recorder, measure
from nacme.errors import DegenerateCoverageWarning, LayerError, NacmeError, NacmeWarning
from nacme.measurement import accuracy
from nacme.settings import CoverageSettings
from nacme.taps import Taps, untouched

pytestmark = pytest.mark.filterwarnings("ignore::nacme.errors.DegenerateCoverageWarning")


class Net(nn.Module):
    """A convolution, a mean over positions and a linear head; ``finish`` has the last word on the logits."""

    def __init__(self, finish=lambda o: o, classes=3, inplace=False):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace)
        self.fc = nn.Linear(8, classes)
        self.finish = finish

    def forward(self, x):
        return self.finish(self.fc(self.relu(self.conv(x)).mean(dim=(2, 3))))


def net(*args, **options):
    torch.manual_seed(0)
    return Net(*args, **options)


def data(sizes=(16, 16), classes=3, scales=(1.0, 1.0)):
    generator = torch.Generator().manual_seed(1)
    return [
        (scale * torch.randn(n, 1, 6, 6, generator=generator), torch.randint(classes, (n,), generator=generator))
        for n, scale in zip(sizes, scales)
    ]


def reference(model, x, layer):
    """z, g and logits by plain autograd in float64, positions summed."""
    twin, found = copy.deepcopy(model).double().eval(), []

    def keep(value):
        found.append(value.detach().clone().requires_grad_())
        return found[-1].clone()

    module = dict(twin.named_modules())[layer.removesuffix(":input")]
    if layer.endswith(":input"):
        module.register_forward_pre_hook(lambda _, inputs: (keep(inputs[0]), *inputs[1:]))
    else:
        module.register_forward_hook(lambda _, __, output: keep(output))
    logits = twin(x.double())
    both = torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits
    (-F.log_softmax(both, dim=1).mean(dim=1)).sum().backward()
    z, g = (t.flatten(2).sum(dim=2) if t.dim() > 2 else t for t in (found[-1].detach(), found[-1].grad))
    return z, g, logits.detach()


def assert_read_right(model, batches, layers, tolerance=1e-4):
    with untouched(model), Taps(model, layers) as taps:
        for x, _ in batches:
            reading = taps.read(x)
            for name in reading.activations:
                z, g, logits = reference(model, x, name)
                torch.testing.assert_close(reading.logits.double(), logits, rtol=tolerance, atol=tolerance)
                torch.testing.assert_close(reading.activations[name].double(), z, rtol=tolerance, atol=tolerance)
                torch.testing.assert_close(reading.gradients[name].double(), g, rtol=tolerance, atol=tolerance)


# The closed form holds for the first batch of these, and not, or not obviously, for the second.


def test_logits_clamped_in_place_are_not_read_by_the_closed_form():
    model, batches = net(lambda o: o.clamp_(-0.5, 0.5)), data(scales=(0.01, 30.0))
    assert_read_right(model, batches, ["fc:input"])
    with pytest.raises(LayerError, match=r"layers=\['fc:input'\]"):
        measure(model, batches)


def sometimes(o):
    return o.clamp_(-0.5, 0.5) if o.abs().max() > 0.5 else o


def test_logits_clamped_in_place_from_some_batch_on():
    model, batches = net(sometimes), data(scales=(0.01, 30.0))
    assert_read_right(model, batches, ["fc:input"])
    with pytest.raises(LayerError, match=r"in another way than for the first batch.*layers=\['fc:input'\]"):
        measure(model, batches)


def test_features_changed_between_the_tap_and_the_head_from_some_batch_on():
    class Capped(Net):
        def forward(self, x):
            z = self.relu(self.conv(x).mean(dim=(2, 3)))
            return self.fc(z.clamp_(max=0.5) if z.max() > 0.5 else z)

    torch.manual_seed(0)
    model = Capped()
    assert_read_right(model, data((16, 16, 8), scales=(0.01, 30.0, 0.01)), ["relu"])


def test_features_changed_after_the_head_has_read_them():
    class Late(Net):
        def forward(self, x):
            z = self.conv(x).mean(dim=(2, 3))
            out = self.fc(z)
            z.zero_()
            return out

    torch.manual_seed(0)
    with pytest.raises(LayerError, match="name layers to tap"):
        measure(Late(), data())


def test_a_hook_of_the_users_that_changes_the_logits_later():
    model = net()
    model.fc.register_forward_hook(lambda module, inputs, output: output.clamp(-0.5, 0.5))
    batches = data(scales=(0.01, 30.0))
    assert_read_right(model, batches, ["fc:input"])
    with pytest.raises(LayerError, match="in another way"):
        measure(model, batches)


def test_what_feeds_a_head_that_is_not_linear_is_suggested():
    with pytest.raises(LayerError, match=r"layers=\['fc:input'\]"):
        measure(net(torch.tanh), data())
    assert_read_right(net(torch.tanh), data(), ["fc:input"])


def test_inside_inference_mode():
    model, batches = net(), data()
    plain = measure(model, batches)
    with torch.inference_mode():
        assert measure(model, batches) == plain
        assert measure(model, batches, layers=["conv"]).num_samples == 32


@pytest.mark.parametrize("layers", [None, ["conv"], ["fc:input"], ["relu"]])
@pytest.mark.parametrize("model", [{}, {"inplace": True}, {"classes": 1}, {"classes": 10_000}])
@pytest.mark.parametrize("sizes", [(16, 16), (1,), (16, 1)])
def test_shapes_and_in_place_activations(model, layers, sizes):
    assert_read_right(net(**model), data(sizes), layers)


def test_channels_last():
    model = net().to(memory_format=torch.channels_last)
    batches = [(x.to(memory_format=torch.channels_last), y) for x, y in data()]
    for layers in (None, ["conv"]):
        assert_read_right(model, batches, layers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", [None, ["conv"]])
def test_half_precision(dtype, layers):
    model, batches = net(), data()
    half = measure(copy.deepcopy(model).to(dtype), batches, layers, 1.0, 20, 0.05, correct_only=False)
    full = measure(model, batches, layers, 1.0, 20, 0.05, correct_only=False)
    assert half.nac_me == pytest.approx(full.nac_me, rel=0.15)
    assert half.loss == pytest.approx(full.loss, rel=0.02)


def test_sums_over_positions_do_not_overflow_in_half_precision():
    model = net().half()
    with torch.no_grad():
        model.conv.bias.fill_(3000.0)
        model.fc.weight.mul_(1e-3)
    with untouched(model), Taps(model, ["conv"]) as taps:
        reading = taps.read(data()[0][0].half())
    assert reading.activations["conv"].dtype == torch.float32
    # 36 positions of about 3,000 are above float16's largest number, 65,504
    assert reading.activations["conv"].min() > 65_504
    assert math.isfinite(measure(model, data(), ["conv"]).nac_me)


def test_dead_neurons_and_one_class():
    model = net()
    with torch.no_grad():
        model.conv.weight[:4], model.conv.bias[:4] = 0, -1
    found = measure(model, [(x, torch.zeros(16, dtype=torch.long)) for x, _ in data()], alpha=1.0, fill=1)
    assert 0 <= found.nac_me <= 1
    assert_read_right(model, data(), None)


def test_a_module_that_runs_twice_is_read_at_its_last_run():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body, self.fc = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = self.body(torch.relu(self.embed(x)))
            return self.fc(self.body(torch.relu(x)))

    torch.manual_seed(0)
    model, x = Shared(), torch.randn(9, 4)
    with untouched(model), Taps(model, ["body"]) as taps:
        reading = taps.read(x)
    z = model.body(torch.relu(model.body(torch.relu(model.embed(x)))))
    torch.testing.assert_close(reading.activations["body"], z.detach())
    p = model.fc(z).softmax(dim=1)
    torch.testing.assert_close(reading.gradients["body"], ((p - 1 / 3) @ model.fc.weight).detach())


def test_data_parallel_reads_as_the_network_itself():
    model, batches = net(), data()
    assert measure(nn.DataParallel(model), batches).nac_me == measure(model, batches).nac_me


def test_distributed_data_parallel_reads_as_the_network_itself(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model, batches = net(), data()
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert measure(wrapped, batches).nac_me == measure(model, batches).nac_me
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("layers", [None, ["conv"]])
def test_a_compiled_network_reads_as_the_network_itself(layers):
    model, batches = net(), data()
    compiled = torch.compile(model, backend="eager")
    found = measure(compiled, batches, layers and [f"_orig_mod.{name}" for name in layers])
    assert found.nac_me == pytest.approx(measure(model, batches, layers).nac_me, abs=1e-6)


# Logits that are no numbers, and labels that are no classes.


def spoiled(value):
    model = net()
    with torch.no_grad():
        model.fc.bias[0] = value
    return model


def test_accuracy_of_a_diverged_network_is_undefined_and_said():
    with pytest.warns(NacmeWarning, match="logits are NaN"):
        assert math.isnan(measure(spoiled(math.nan), data()).accuracy)
    with pytest.warns(NacmeWarning, match="logits are NaN"):
        assert math.isnan(accuracy(spoiled(math.nan), data()))
    assert accuracy(spoiled(math.inf), [(x, 0 * y) for x, y in data()]) == 1.0


def test_a_diverged_network_is_recorded_as_null_and_said_once():
    recorder = Recorder(spoiled(math.nan), {"env0_out": data()})
    with pytest.warns(NacmeWarning, match="NaN on env0_out") as caught:
        records = [recorder.record() for _ in range(2)]
    assert len(caught) == 1
    assert records[0]["nac_me"] is records[0]["nac_me_robust"] is records[0]["val_loss"] is None
    json.dumps(records, allow_nan=False)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-100, "label -100 is no class"),
        (3, "label 3 is no class of a model with 3 logits"),
        (0.7, "label 0.7 is no"),
    ],
)
def test_labels_that_are_no_class_are_refused(label, message):
    spoilt = [(x, torch.where(torch.arange(len(y)) == 5, label, y)) for x, y in data()]
    for use in (measure, accuracy, lambda model, each: Recorder(model, {"env0": each}).record()):
        with pytest.raises(NacmeError, match=message):
            use(net(), spoilt)


def test_one_hot_labels_are_refused_with_what_to_pass():
    with pytest.raises(NacmeError, match=r"argmax\(dim=1\)"):
        measure(net(), [(x, F.one_hot(y, 3)) for x, y in data()])


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x, 0 * y - 7),
        lambda x, y: (x,),
        lambda x, y: x,
        lambda x, y: {"x": x},
        lambda x, y: (x, ["a"]),
    ],
)
def test_labels_of_target_splits_play_no_part(change):
    target = data()
    records = [
        Recorder(net(), {"env0": data((8, 8))}, target_loaders={"env1": loader}).record()
        for loader in (target, [change(x, y) for x, y in target])
    ]
    assert records[0] == records[1]
    assert records[0]["atc"] is not None


# Coverage that only counts samples.


def test_bins_that_are_never_full_are_said_once_with_the_remedy():
    recorder = Recorder(net(), {"env0": data()}, settings=CoverageSettings(alpha="auto", bins=20, fill=500))
    with pytest.warns(DegenerateCoverageWarning, match=r"hardly a bin holds the 500 states.*fill=0\.05") as caught:
        records = [recorder.record() for _ in range(3)]
    assert len(caught) == 1
    nac = records[0]["nac"]
    assert nac["degenerate"]
    assert nac["full_bins"] == 0
    assert "hardly a bin" in nac["reason"]
    assert records[0]["nac_me"] * 20 * 500 == pytest.approx(nac["num_counted"])


def test_both_faults_are_one_warning_and_their_cure_cures_them():
    with pytest.warns(
        DegenerateCoverageWarning, match=r"1\.0 bins on average and hardly a bin.*alpha='auto'"
    ) as caught:
        found = measure(net(), data((200, 200)), alpha=1e-9)
    assert len(caught) == 1
    assert found.degenerate
    assert found.reason in str(caught[0].message)
    cured = measure(net(), data((200, 200)), alpha="auto", fill=0.02)
    assert not cured.degenerate
    assert cured.reason is None
