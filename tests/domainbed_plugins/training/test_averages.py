"""Averages of the weights: right by hand, resumable, and of no effect on the run that they are kept beside."""

import json
import os
import signal

import pytest
import torch
from torch import nn

from domainbed_plugins.runs import paths
from domainbed_plugins.runs.checkpoints import load_checkpoint
from domainbed_plugins.testbed.algorithms import ALGORITHMS
from domainbed_plugins.training.averages import Averages, InOrder, first_step, sample
from domainbed_plugins.training.signals import InterruptedRun
from nacme.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore::nacme.errors.DegenerateCoverageWarning")

SHORT = ["--dataset", "RotatedDigits", "--steps", "9", "--checkpoint_freq", "3", "--test_envs", "1"]
BOTH = {"average": ["sma", "ema"], "average_from": 2, "average_decay": 0.9}


class Toy(nn.Module):
    """A network with batch norm, as an algorithm."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.unused = nn.BatchNorm1d(2)
        self.second = nn.Linear(4, 2)

    def predict(self, x):
        return self.second(self.norm(self.first(x)))


def walk(model, averages, steps, seed=0):
    """Move the weights at random; return them as they were after each step."""
    generator = torch.Generator().manual_seed(seed)
    seen = []
    for step in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        averages.update(step)
        seen.append([p.detach().clone() for p in model.parameters()])
    return seen


def weights_of(averages, model, kind):
    with averages.installed(kind, lambda: [torch.randn(8, 3)]):
        return [p.detach().clone() for p in model.parameters()]


def test_averages_follow_their_rules_by_hand():
    model = Toy()
    averages = Averages(model, ["ema", "sma"], 3, 0.9)
    seen = walk(model, averages, 10)
    for index, found in enumerate(weights_of(averages, model, "sma")):
        mean = torch.stack([weights[index].double() for weights in seen[3:]]).mean(0)
        assert torch.allclose(found.double(), mean, atol=1e-6)
    for index, found in enumerate(weights_of(averages, model, "ema")):
        by_hand = seen[3][index].double()
        for weights in seen[4:]:
            by_hand = 0.9 * by_hand + 0.1 * weights[index].double()
        assert torch.allclose(found.double(), by_hand, atol=1e-6)


def test_there_is_no_average_before_its_first_step_and_one_step_alone_is_itself():
    model = Toy()
    averages = Averages(model, ["sma", "ema"], 2, 0.9)
    walk(model, averages, 2)
    assert averages.ready() == []
    seen = walk(model, averages, 3)[-1]
    assert averages.ready() == ["sma", "ema"]
    for kind in averages.ready():
        assert all(torch.equal(a, b) for a, b in zip(weights_of(averages, model, kind), seen))


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_the_algorithm_gets_its_own_weights_and_modes_back(error):
    model = Toy()
    model.norm.eval()
    averages = Averages(model, ["sma"], 0, 0.9)
    walk(model, averages, 5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    try:
        with averages.installed("sma", lambda: [torch.randn(8, 3)]):
            assert not torch.equal(model.first.weight, before["first.weight"])
            if error:
                raise error
    except RuntimeError:
        pass
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


def test_batch_norm_statistics_are_taken_anew_where_training_moves_them():
    model = Toy()
    averages = Averages(model, ["sma"], 0, 0.9)
    walk(model, averages, 5)
    model.norm.momentum = 0.3
    batches = [torch.randn(16, 3) for _ in range(4)]
    before = {key: value.clone() for key, value in model.unused.named_buffers()}
    with averages.installed("sma", lambda: batches):
        passed = [model.first(x).detach() for x in batches]
        assert torch.allclose(model.norm.running_mean, torch.stack([x.mean(0) for x in passed]).mean(0), atol=1e-5)
        assert torch.allclose(model.norm.running_var, torch.stack([x.var(0) for x in passed]).mean(0), atol=1e-5)
        assert model.norm.training
        assert all(torch.equal(value, before[key]) for key, value in model.unused.named_buffers())
    assert model.norm.momentum == 0.3


def test_frozen_batch_norm_is_left_alone():
    model = Toy()
    model.norm.eval()
    model.unused.eval()
    averages = Averages(model, ["sma"], 0, 0.9)
    walk(model, averages, 5)
    before = model.norm.running_mean.clone()

    def never():
        raise AssertionError

    with averages.installed("sma", never):
        assert torch.equal(model.norm.running_mean, before)


def test_a_sample_of_training_is_bounded_and_takes_no_number_from_the_run():
    splits = [torch.utils.data.TensorDataset(torch.randn(size, 2), torch.zeros(size)) for size in (1000, 64)]
    before = torch.get_rng_state()
    drawn = list(sample(splits, 16, seed=3))
    assert [len(x) for x in drawn] == [32] * 4
    assert len(list(sample(splits[:1], 16, seed=3))) == 20
    assert len(list(sample(splits, 100, seed=3))) == 1
    assert torch.equal(before, torch.get_rng_state())
    again = list(sample(splits, 16, seed=3))
    assert all(torch.equal(a, b) for a, b in zip(drawn, again))
    assert len(torch.cat([x[16:] for x in drawn]).unique(dim=0)) == 64


@pytest.mark.parametrize("workers", [0, 1])
def test_splits_are_read_in_order(workers):
    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return torch.full((2,), float(index)), index

    before = torch.get_rng_state()
    batches = list(InOrder(Images(), 4, workers, seed=1))
    assert torch.cat([y for _, y in batches]).tolist() == list(range(10))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("start", "step"), [(0.4, 40), (0, 0), (0.0, 0), (99, 99)])
def test_where_averages_start(start, step):
    assert first_step(start, 100) == step


@pytest.mark.parametrize("start", [100, 1.0, -1, -0.5])
def test_a_start_that_no_run_reaches_is_refused(start):
    with pytest.raises(ConfigError, match=r"--average_from .*a step below the run's 100"):
        first_step(start, 100)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_run_itself_is_what_it_is_without(algorithm, train_run, read_records, tmp_path):
    flags = [*SHORT, "--algorithm", algorithm]
    train_run(tmp_path / "plain", *flags)
    train_run(tmp_path / "averaged", *flags, **BOTH)
    assert read_records(tmp_path / "averaged") == read_records(tmp_path / "plain")
    plain, averaged = (
        load_checkpoint(tmp_path / run / "model.pkl")["model_dict"] for run in ("plain", "averaged")
    )
    assert all(torch.equal(plain[key], averaged[key]) for key in plain)


def averages(run):
    records = [json.loads(line) for line in (run / paths.AVERAGES).read_text().splitlines()]
    for record in records:
        del record["args"]["output_dir"]
    return records


def test_what_is_recorded_of_an_average(train_run, records, tmp_path):
    train_run(tmp_path, *SHORT, keep=["all"], **BOTH)
    found, raw = averages(tmp_path), records(tmp_path)
    assert [(r["step"], r["candidate"]) for r in found] == [
        (step, kind) for step in (3, 6, 8) for kind in ("sma", "ema")
    ]
    left_out = {"env0_in_acc", "env2_in_acc", "env3_in_acc", "env4_in_acc", "env5_in_acc"}
    left_out |= {"loss", "step_time", "mem_gb"}
    assert raw[0].keys() - found[0].keys() == left_out
    assert found[0].keys() - raw[0].keys() == {"candidate"}
    assert found[-1]["nac_me"] != raw[-1]["nac_me"]
    names = {path.name for path in tmp_path.glob("model*")}
    assert names == {
        *(f"model_step{step}.pkl" for step in (0, 3, 6, 8)),
        *(f"model_step{step}_{kind}.pkl" for step in (3, 6, 8) for kind in ("sma", "ema")),
        *("model.pkl", "model_sma.pkl", "model_ema.pkl"),
    }


def test_what_is_saved_is_what_was_measured(train_run, records, tmp_path):
    """An averaged checkpoint, put in the place of the run's own, scores as it was recorded."""
    from domainbed_plugins.scoring.options import ScoreOptions
    from domainbed_plugins.scoring.run import score
    from nacme.settings import CoverageSettings

    train_run(tmp_path / "run", *SHORT, **BOTH)
    os.replace(tmp_path / "run" / "model_sma.pkl", tmp_path / "run" / "model.pkl")
    options = ScoreOptions(CoverageSettings(alpha=10.0, fill=0.1))
    assert score(tmp_path, None, options).failures == []
    measured, recorded = records(tmp_path / "run", "nac.jsonl")[-1], averages(tmp_path / "run")[-2]
    assert (measured["step"], recorded["candidate"]) == (8, "sma")
    assert measured["nac_me"] == pytest.approx(recorded["nac_me"], abs=1e-6)
    assert measured["val_loss"] == pytest.approx(recorded["val_loss"], abs=1e-6)


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("algorithm", ["ERM", "GroupDRO"])
def test_an_interrupted_run_gives_the_same_averages(algorithm, train_run, crash, read_records, tmp_path):
    flags = [*SHORT, "--algorithm", algorithm]
    train_run(tmp_path / "whole", *flags, **BOTH)
    for step, how in ((1, crash), (4, crash), (4, stop), (6, crash), (7, stop)):
        with pytest.raises((InterruptedRun, crash.error)):
            train_run(tmp_path / "parts", *flags, after={step: how}, **BOTH)
    train_run(tmp_path / "parts", *flags, **BOTH)
    assert read_records(tmp_path / "parts") == read_records(tmp_path / "whole")
    assert averages(tmp_path / "parts") == averages(tmp_path / "whole")
    for name in ("model.pkl", "model_sma.pkl", "model_ema.pkl"):
        a, b = (load_checkpoint(tmp_path / run / name)["model_dict"] for run in ("parts", "whole"))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_lost_lines_of_averages_come_from_the_state(train_run, crash, tmp_path):
    train_run(tmp_path / "whole", *SHORT, **BOTH)
    with pytest.raises(crash.error):
        train_run(tmp_path / "run", *SHORT, after={6: crash}, **BOTH)
    path = tmp_path / "run" / paths.AVERAGES
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]) + b'{"torn')
    train_run(tmp_path / "run", *SHORT, **BOTH)
    assert averages(tmp_path / "run") == averages(tmp_path / "whole")


@pytest.mark.parametrize("others", [{}, {**BOTH, "average": ["sma"]}, {**BOTH, "average_decay": 0.8}])
def test_a_run_goes_on_with_the_averages_that_it_began_with(others, train_run, crash, tmp_path):
    with pytest.raises(crash.error):
        train_run(tmp_path / "run", *SHORT, after={4: crash}, **BOTH)
    with pytest.raises(ConfigError, match="was begun with average = "):
        train_run(tmp_path / "run", *SHORT, **others)


@pytest.mark.parametrize("keep", [["best:val_acc"], ["best:nac_me", "last"], ["last"]])
def test_what_stays_of_averages_is_what_can_be_chosen_among_them(keep, train_run, tmp_path):
    train_run(tmp_path, *SHORT, keep=keep, **BOTH)
    for kind in ("sma", "ema"):
        records = [record for record in averages(tmp_path) if record["candidate"] == kind]
        steps = set()
        for what in keep:
            if what == "last":
                steps.add(8)
            elif what == "best:nac_me":
                steps.add(max(records, key=lambda r: (r["nac_me"], -r["step"]))["step"])
            else:
                held_out = [[r[f"env{e}_out_acc"] for e in range(6) if e != 1] for r in records]
                best = max(range(len(records)), key=lambda i: (sum(held_out[i]), -i))
                steps.add(records[best]["step"])
        names = {f"model_{kind}.pkl" if step == 8 else f"model_step{step}_{kind}.pkl" for step in steps}
        assert {path.name for path in tmp_path.glob(f"*_{kind}.pkl")} == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": ["swa"]}, "--average swa: choose among sma, ema"),
        ({"average": ["sma", "sma"]}, "each once"),
        ({"average": ["ema"], "average_decay": 1.0}, "--average_decay 1.0: a number from 0 to below 1"),
        ({"average": ["sma"], "average_from": 9}, "a step below the run's 9"),
    ],
)
def test_wrong_averages_are_told_before_anything_is_written(options, message, train_run, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train_run(tmp_path / "run", *SHORT, **options)
    assert not (tmp_path / "run").exists()
