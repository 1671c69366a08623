"""The recorder: what it writes equals separate measurements, and it is JSON."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from nacme import Recorder, measure
from nacme.criteria import registry
from nacme.criteria.registry import Criterion
from nacme.errors import ConfigError, CriterionError, DegenerateCoverageWarning, NacmeWarning
from nacme.settings import CoverageSettings

SETTINGS = CoverageSettings(alpha=20.0, bins=20, fill=2)


def loader(seed, count=40):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    return list(zip(x.split(16), torch.randint(3, (count,), generator=generator).split(16)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def test_coverage_is_pooled_and_loss_is_averaged_over_environments(model):
    loaders = {"env1_out": loader(1), "env2_out": loader(2, count=17)}
    record = Recorder(model, loaders, settings=SETTINGS).record()
    together = measure(model, loaders["env1_out"] + loaders["env2_out"], alpha=20.0, bins=20, fill=2)
    assert record["nac_me"] == together.nac_me
    losses = [measure(model, each, alpha=20.0, bins=20, fill=2).loss for each in loaders.values()]
    assert record["val_loss"] == pytest.approx(sum(losses) / 2)
    assert record["nac"]["num_samples"] == 57
    assert record["nac"]["num_counted"] == together.num_counted
    assert record["nac"]["layers"] == ["2:input"]


def test_coverage_of_another_split_leaves_the_loss_on_validation(model):
    out, in_ = {"env1_out": loader(1)}, {"env1_in": loader(3)}
    record = Recorder(model, out, coverage_loaders=in_, settings=SETTINGS).record()
    assert record["val_loss"] == pytest.approx(measure(model, loader(1), alpha=20.0).loss)
    assert record["nac_me"] == measure(model, loader(3), alpha=20.0, bins=20, fill=2).nac_me


@pytest.mark.filterwarnings("ignore::nacme.errors.DegenerateCoverageWarning")
def test_grid_equals_separate_measurements(model):
    grid = [
        CoverageSettings(alpha, bins, fill)
        for alpha in (1.0, 20.0, "auto")
        for bins in (10, 20)
        for fill in (1, 0.1)
    ]
    record = Recorder(model, {"env0_out": loader(1)}, settings=SETTINGS, grid=grid).record()
    assert record["nac"]["grid"].keys() == {setting.key() for setting in grid}
    for setting in grid:
        alone = measure(model, loader(1), None, setting.alpha, setting.bins, setting.fill)
        assert record[setting.key()] == pytest.approx(alone.nac_me, abs=1e-7)
    assert CoverageSettings(0.1, 50, 0.08).key() == "nac_me_a0p1_m50_o0p08"


def test_several_layers_are_recorded_together_and_each_alone(model):
    grid = [CoverageSettings(1.0, 20, 2)]
    layers = ["0", "2:input"]
    record = Recorder(model, {"env0_out": loader(1)}, settings=SETTINGS, grid=grid, layers=layers).record()
    for key in ("nac_me", "nac_me_a1p0_m20_o2"):
        assert record[key] == pytest.approx((record[f"{key}_at_0"] + record[f"{key}_at_2_input"]) / 2)
    assert record["nac"]["per_layer"]["0"] == record["nac_me_at_0"]
    assert record["nac"]["grid"]["nac_me_at_2_input"]["layer"] == "2:input"


def test_a_loop_of_ones_own(model):
    """The two lines that a fork's train.py needs, on real digits and a real optimizer."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    loaders = {f"env{i}_out": list(zip(x[i::3][:150].split(64), y[i::3][:150].split(64))) for i in range(3)}

    recorder = Recorder(net, loaders, settings=CoverageSettings(alpha=1.0, fill=0.08))
    lines = []
    for step in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[450:]), y[450:]).backward()
        optimizer.step()
        if step % 20 == 19:
            results = {"step": step}
            results.update(recorder.record())
            lines.append(json.loads(json.dumps(results, allow_nan=False)))
            assert net.training
    assert lines[-1]["val_loss"] < lines[0]["val_loss"]
    assert lines[-1]["nac_me"] > lines[0]["nac_me"]


@pytest.mark.filterwarnings("ignore::nacme.errors.DegenerateCoverageWarning")
def test_a_diverged_model_gives_null_not_nan(model):
    model[0].weight.data.fill_(math.nan)
    record = Recorder(model, {"env0_out": loader(1)}, settings=SETTINGS).record()
    assert record["nac_me"] is None
    assert record["val_loss"] is None
    json.dumps(record, allow_nan=False)


def test_degenerate_coverage_is_recorded_always_and_said_once(model):
    recorder = Recorder(model, {"env0_out": loader(1)}, settings=CoverageSettings(alpha=1e-6))
    with pytest.warns(DegenerateCoverageWarning) as caught:
        records = [recorder.record() for _ in range(3)]
    assert len(caught) == 1
    assert all(record["nac"]["degenerate"] for record in records)


def test_a_setting_for_another_split_is_what_measuring_that_split_gives(model):
    """One pass over each split; what is measured on the main one stays as it is."""
    out, in_ = {"env1_out": loader(1)}, {"env1_in": loader(3)}
    grid = [replace(SETTINGS, alpha=alpha, split=split) for alpha in (1.0, "auto") for split in (None, "in")]
    passes = []

    class Counted(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    further = {"in": {name: Counted(batches) for name, batches in in_.items()}}
    both = Recorder(model, out, further_loaders=further, settings=SETTINGS, grid=grid).record()
    assert len(passes) == 1
    alone = Recorder(model, out, settings=SETTINGS, grid=[s for s in grid if s.split is None]).record()
    there = Recorder(model, in_, settings=SETTINGS, grid=[replace(s, split=None) for s in grid[::2]]).record()
    for setting in grid:
        expected = (there if setting.split else alone)[replace(setting, split=None).key()]
        assert both[setting.key()] == pytest.approx(expected, abs=1e-7)
    assert {key: both[key] for key in alone if key != "nac"} == {
        key: v for key, v in alone.items() if key != "nac"
    }
    assert both["nac"]["grid"][grid[1].key()]["split"] == "in"
    with pytest.raises(ConfigError, match="give its further_loaders"):
        Recorder(model, out, settings=SETTINGS, grid=grid)


def test_what_is_recorded_beside_coverage_of_correct_samples(model):
    record = Recorder(model, {"env0_out": loader(1)}, settings=SETTINGS).record()
    assert record["nac_me_all"] == measure(model, loader(1), None, 20.0, 20, 2, correct_only=False).nac_me
    assert record["sham_count"] == pytest.approx(measure(model, loader(1)).accuracy)


def test_no_loader(model):
    with pytest.raises(ConfigError, match="at least one validation loader"):
        Recorder(model, {})


def test_a_layer_of_the_grid_is_measured_beside_those_of_nac_me():
    """It gives what measuring it alone gives, and leaves everything else as it is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    loaders = {"env0_out": loader(1)}
    deeper = replace(SETTINGS, layer="0")
    alone = Recorder(model, loaders, settings=SETTINGS, grid=[SETTINGS]).record()
    both = Recorder(model, loaders, settings=SETTINGS, grid=[SETTINGS, deeper]).record()
    there = measure(model, loaders["env0_out"], layers=["0"], alpha=20.0, bins=20, fill=2)

    assert both.pop(deeper.key()) == pytest.approx(there.nac_me)
    assert deeper.key() == "nac_me_a20p0_m20_o2_at_0"
    assert both["nac"]["layers"] == ["4:input"]
    assert both["nac"].pop("grid")[deeper.key()]["layer"] == "0"
    del alone["nac"]["grid"]
    assert both == alone


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda data: 1 / 0, "'mine' failed with ZeroDivisionError: division by zero"),
        (lambda data: "0.5", "'mine' gave the text '0.5', not a number"),
        (lambda data: torch.ones(3), "'mine' failed with"),
        (lambda data: None, "'mine' failed with TypeError"),
    ],
)
def test_a_criterion_that_fails_is_null_and_named_once(model, monkeypatch, compute, message):
    mine = Criterion("mine", True, "ind", ("logits",), "none", "here", "Fails.", compute)
    monkeypatch.setitem(registry._REGISTRY, "mine", mine)
    recorder = Recorder(model, {"env0_out": loader(1)}, settings=SETTINGS, criteria=["mine", "ece"])
    with pytest.warns(NacmeWarning, match=message) as caught:
        records = [recorder.record() for _ in range(3)]
    assert len(caught) == 1
    assert all(record["mine"] is None and record["ece"] is not None for record in records)


@pytest.mark.parametrize(("field", "value"), [("sees", "target"), ("needs", ("logit",))])
def test_what_a_criterion_cannot_see_or_need_is_refused(field, value):
    given = {
        "higher_is_better": True,
        "sees": "ind",
        "needs": ("logits",),
        "cost": "",
        "source": "",
        "description": "",
    }
    with pytest.raises(CriterionError, match=f"criterion 'odd': {field}="):
        registry.register(Criterion("odd", **{**given, field: value}))


@pytest.mark.filterwarnings("ignore::nacme.errors.DegenerateCoverageWarning")
def test_coverage_with_other_settings_is_declared_in_one_place(model, monkeypatch):
    fewer = replace(registry.get_criterion("nac_me_auto"), name="fewer_bins", changes={"bins": 10})
    monkeypatch.setitem(registry._REGISTRY, "fewer_bins", fewer)
    record = Recorder(model, {"env0_out": loader(1)}, settings=SETTINGS, criteria=["fewer_bins"]).record()
    assert record["fewer_bins"] == measure(model, loader(1), alpha=20.0, bins=10, fill=2).nac_me


# What a loop of one's own asks for.


def test_validation_accuracy_is_the_mean_over_loaders(model):
    loaders = {"env1_out": loader(1), "env2_out": loader(2, count=17)}
    record = Recorder(model, loaders, settings=SETTINGS).record()
    accuracies = [measure(model, each, None, 20.0, 20, 2).accuracy for each in loaders.values()]
    assert record["val_acc"] == pytest.approx(sum(accuracies) / 2)


def test_a_single_loader_needs_no_name(model):
    bare = Recorder(model, loader(1), settings=SETTINGS).record()
    assert bare == Recorder(model, {"val": loader(1)}, settings=SETTINGS).record()


@pytest.mark.filterwarnings("ignore::nacme.errors.NacmeWarning")
def test_loggers_get_floats_alone(model):
    recorder = Recorder(model, loader(1), settings=SETTINGS)
    whole, floats = recorder.record(), recorder.record(floats_only=True)
    assert floats.keys() == whole.keys() - {"nac"}
    assert all(type(value) is float for value in floats.values())
    assert floats["nac_me"] == whole["nac_me"]
    model[0].weight.data.fill_(math.nan)
    assert math.isnan(recorder.record(floats_only=True)["nac_me"])


def test_another_network_is_measured_as_a_recorder_of_its_own_would(model):
    torch.manual_seed(5)
    other = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    criteria = ["ece", "gradient_norm", "weight_norm"]
    recorder = Recorder(model, loader(1), settings=SETTINGS, criteria=criteria)
    first = recorder.record()
    assert recorder.record(other) == Recorder(other, loader(1), settings=SETTINGS, criteria=criteria).record()
    assert recorder.record() == first


@pytest.mark.parametrize("test_envs", [[1], [[1]], (0, 1), [[1, 2]]])
def test_splits_of_test_environments_are_refused(model, test_envs):
    ours, theirs = {"env3_out": loader(1)}, {"env1_in": loader(2)}
    for options in (
        {"loaders": {**ours, **theirs}},
        {"loaders": ours, "coverage_loaders": theirs},
        {"loaders": ours, "further_loaders": {"in": theirs}},
    ):
        with pytest.raises(ConfigError, match="'env1_in' is of test environment 1"):
            Recorder(model, **options, test_envs=test_envs)
    Recorder(model, ours, target_loaders=theirs, test_envs=test_envs)


def test_a_name_that_tells_no_environment_is_refused_where_some_are_held_out(model):
    with pytest.raises(ConfigError, match="'photo' does not say which environment"):
        Recorder(model, {"photo": loader(1)}, test_envs=[[0]])
    Recorder(model, {"env12_out": loader(1)}, test_envs=[1])
