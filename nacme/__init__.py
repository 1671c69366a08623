"""nacme: choose domain-generalization checkpoints by neuron activation coverage, and study the choice.

The names below load on first use, so that ``import nacme`` and ``nacme --help`` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nacme.version import __version__ as __version__

if TYPE_CHECKING:
    from nacme.errors import NacmeError, NacmeWarning
    from nacme.measurement import Measurement, measure
    from nacme.metric import NeuronActivationCoverage
    from nacme.recorder import Recorder
    from nacme.records.load import load_sweep
    from nacme.settings import CoverageSettings
    from nacme.states import kl_gradients, neuron_states
    from nacme.study.comparison import compare_criteria
    from nacme.study.correlation import rank_correlation
    from nacme.study.quality import selection_quality
    from nacme.study.recommendation import recommend
    from nacme.study.selection import select

_HOMES = {
    "kl_gradients": "nacme.states",
    "neuron_states": "nacme.states",
    "NeuronActivationCoverage": "nacme.metric",
    "measure": "nacme.measurement",
    "Measurement": "nacme.measurement",
    "CoverageSettings": "nacme.settings",
    "Recorder": "nacme.recorder",
    "load_sweep": "nacme.records",
    "select": "nacme.study.selection",
    "recommend": "nacme.study.recommendation",
    "RunLog": "domainbed_plugins.runs.log",
    "load_ensemble": "domainbed_plugins.averaging.ensemble",
    "rank_correlation": "nacme.study.correlation",
    "compare_criteria": "nacme.study.comparison",
    "selection_quality": "nacme.study.quality",
    "NacmeError": "nacme.errors",
    "NacmeWarning": "nacme.errors",
}

#: Modules that need an extra, loaded when they are asked for.
_MODULES = ("lightning", "ood", "transformers")

__all__ = [
    "CoverageSettings",
    "Measurement",
    "NacmeError",
    "NacmeWarning",
    "NeuronActivationCoverage",
    "Recorder",
    "RunLog",
    "compare_criteria",
    "kl_gradients",
    "lightning",
    "load_ensemble",
    "load_sweep",
    "measure",
    "neuron_states",
    "ood",
    "rank_correlation",
    "recommend",
    "select",
    "selection_quality",
    "transformers",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"nacme.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nacme' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
