"""Coverage as a metric of Lightning: what it logs is measured, chooses checkpoints, and leaves training alone."""

import math
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nacme
from nacme.errors import ConfigError, NacmeError
from nacme.settings import CoverageSettings

pl = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore::nacme.errors.DegenerateCoverageWarning")

SETTINGS = CoverageSettings(alpha=20.0, bins=20, fill=2)


class Digits(pl.LightningModule):
    def __init__(self, convolution=False):
        super().__init__()
        body = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten()]
        self.net = nn.Sequential(
            *(body if convolution else ()), nn.LazyLinear(16), nn.Dropout(), nn.ReLU(), nn.Linear(16, 10)
        )
        self.net(torch.zeros(2, 64))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _, dataloader_idx=0):
        if dataloader_idx == 0:
            self.log("val_loss", 7.0, add_dataloader_idx=False)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def split(seed, count):
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(seed))[:count]
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    return TensorDataset(x[chosen], y[chosen])


def fit(tmp_path, *callbacks, epochs=3, val=None, **options):
    torch.manual_seed(0)
    module = Digits(options.pop("convolution", False))
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[*callbacks], default_root_dir=tmp_path, logger=False,
        enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, pl.callbacks.ModelCheckpoint) for c in callbacks), **options,
    )  # fmt: skip
    train = DataLoader(split(1, 300), 64, shuffle=True)
    trainer.fit(module, train, val if val is not None else DataLoader(split(2, 200), 64))
    return trainer, module


class History(pl.Callback):
    def __init__(self):
        self.metrics = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.mark.parametrize("layers", [None, ["net.1"]])
def test_the_checkpoint_of_the_widest_coverage_is_kept(tmp_path, layers):
    history = History()
    best = pl.callbacks.ModelCheckpoint(tmp_path, monitor="nac_me", mode="max")
    coverage = nacme.lightning.Coverage(SETTINGS, layers=layers)
    _, module = fit(tmp_path, coverage, best, history, convolution=layers is not None)
    values = [metrics["nac_me"] for metrics in history.metrics]
    assert len(values) == 3
    assert all(0 < value < 1 for value in values)
    assert best.best_model_score == pytest.approx(max(values))
    module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    found = nacme.measure(module, DataLoader(split(2, 200), 64), layers, 20.0, 20, 2)
    assert found.nac_me == pytest.approx(max(values), abs=1e-6)


def test_rivals_are_logged_and_what_the_module_logs_stays(tmp_path):
    history = History()
    fit(tmp_path, nacme.lightning.Coverage(SETTINGS), history, epochs=2)
    for metrics in history.metrics:
        assert metrics["val_loss"] == 7.0
        assert {"nac_me", "ece", "nac_me_robust"} <= metrics.keys()
    fit(tmp_path, nacme.lightning.Coverage(SETTINGS, criteria=["ece"], prefix="cov/"), history, epochs=1)
    assert history.metrics[-1].keys() == {"val_loss", "cov/val_loss", "cov/val_acc", "cov/nac_me", "cov/ece"}
    assert history.metrics[-1]["cov/val_loss"] < 7


def test_training_goes_as_without_it(tmp_path):
    plain, with_coverage = (
        fit(tmp_path, *each)[1].state_dict() for each in ([], [nacme.lightning.Coverage(SETTINGS)])
    )
    assert all(torch.equal(plain[name], with_coverage[name]) for name in plain)


@pytest.mark.parametrize("as_given", [list, lambda pair: {"a": pair[0], "b": pair[1]}])
def test_one_of_several_dataloaders_limited_as_the_trainer_limits(tmp_path, as_given):
    history = History()
    loaders = as_given([DataLoader(split(seed, 200), 50) for seed in (2, 3)])
    coverage = nacme.lightning.Coverage(SETTINGS, dataloaders=[1], network="net")
    _, module = fit(tmp_path, coverage, history, epochs=1, val=loaders, limit_val_batches=2)
    seen = [batch for batch, _ in zip(DataLoader(split(3, 200), 50), range(2))]
    assert history.metrics[0]["nac_me"] == pytest.approx(nacme.measure(module, seen, None, 20.0, 20, 2).nac_me)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataloaders": [1]}, "names number 1; there are 1"),
        ({"network": "nett"}, "network='nett' is no module of the LightningModule; it has net"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        fit(tmp_path, nacme.lightning.Coverage(SETTINGS, **options), epochs=1)


def test_places_and_loaders_together_are_refused():
    with pytest.raises(ConfigError, match="not both"):
        nacme.lightning.Coverage(dataloaders=[0], loaders={"a": []})


def test_parts_of_processes_are_refused():
    class Many:
        world_size, sanity_checking = 2, False

    with pytest.raises(ConfigError, match="each process's own part"):
        nacme.lightning.Coverage().on_validation_epoch_end(Many(), Digits())


def test_a_value_that_is_none_is_nan(tmp_path):
    class Diverged(Digits):
        def forward(self, x):
            return self.net(x * math.nan)

    module, history = Diverged(), History()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[nacme.lightning.Coverage(SETTINGS), history], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.warns(nacme.NacmeWarning):
        trainer.fit(module, DataLoader(split(1, 64), 64), DataLoader(split(2, 64), 64))
    assert math.isnan(history.metrics[0]["nac_me"])


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_missing_framework_is_one_line(monkeypatch, name):
    for module in [m for m in sys.modules if m == f"nacme.{name}" or m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)

    class Missing:
        def find_spec(self, wanted, *_):
            if wanted == name:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    monkeypatch.delitem(vars(nacme), name, raising=False)
    with pytest.raises(NacmeError, match=rf"pip install 'nacme\[{name}\]'"):
        getattr(nacme, name)
