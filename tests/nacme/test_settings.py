"""NAC-ME's settings: types and ranges are checked, and keys are read as they are written."""

import subprocess
import sys

import numpy as np
import pytest

import nacme
from nacme.errors import ConfigError
from nacme.settings import CoverageSettings, parse_key


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bins": 50.0}, "bins=50.0 must be a whole number"),
        ({"bins": "50"}, "bins='50' must be a whole number"),
        ({"bins": True}, "bins=True must be a whole number"),
        ({"bins": 1}, "bins=1 must be at least 2"),
        ({"alpha": "0.1"}, "alpha='0.1' must be a positive number or 'auto'"),
        ({"alpha": None}, "alpha=None must be a positive number or 'auto'"),
        ({"alpha": True}, "alpha=True must be a positive number or 'auto'"),
        ({"alpha": float("nan")}, "alpha=nan must be a positive number or 'auto'"),
        ({"fill": "500"}, "fill='500' must be a positive count"),
        ({"fill": float("nan")}, "fill=nan must be a positive count"),
        ({"fill": 1.5}, "fill=1.5 must be a positive count"),
        ({"fill": True}, "fill=True must be a positive count"),
        ({"correct_only": "no"}, "correct_only='no' must be True or False"),
        ({"quantity": "produkt"}, "quantity='produkt' is unknown; did you mean 'product'"),
        ({"layer": 3}, "layer=3 must be the dotted path of a layer"),
        ({"layer": ""}, "layer='' must be the dotted path of a layer"),
    ],
)
def test_wrong_values_are_refused_by_name(changed, message):
    with pytest.raises(ConfigError, match="^" + message.replace("(", "[(]")):
        CoverageSettings(**changed)


@pytest.mark.parametrize("metric", [{"bins": 50.0}, {"fill": "1"}, {"bins": None}])
def test_the_metric_refuses_what_the_settings_refuse(metric):
    with pytest.raises(ConfigError, match="must be"):
        nacme.NeuronActivationCoverage(3, **metric)


def test_numpy_numbers_are_numbers():
    settings = CoverageSettings(np.float64(0.1), np.int64(50), np.int64(500))
    assert settings == CoverageSettings()
    assert settings.key() == CoverageSettings().key()


def test_settings_and_keys_need_no_torch():
    code = "import sys, nacme; nacme.CoverageSettings(); import nacme.settings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "settings",
    [
        CoverageSettings(),
        CoverageSettings(alpha="auto", bins=20, fill=0.08),
        CoverageSettings(alpha=1e-05, bins=1000, fill=1, correct_only=False),
    ],
)
def test_keys_are_read_as_the_recorder_writes_them(settings):
    read = parse_key(settings.key())
    assert (read.alpha, read.bins, read.fill) == (settings.alpha, settings.bins, settings.fill)
    assert type(read.fill) is type(settings.fill)
    assert read.samples == ("correct" if settings.correct_only else "all")
    assert read.layer == "mean"
    assert parse_key(settings.key() + "_at_classifier_input").layer == "classifier_input"


@pytest.mark.parametrize("key", ["nac_me", "nac_me_auto", "val_acc", "nac_me_at_layer4"])
def test_other_columns_are_no_settings(key):
    assert parse_key(key) is None
