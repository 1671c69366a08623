"""Detectors of out-of-distribution samples, on pytorch-ood's ``Detector`` interface.

``NACUE``, ``LINe``, ``NAP`` and ``tune`` load on first use and need the optional pytorch-ood;
``nacme.ood.functional`` and ``nacme.ood.outliers`` do without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nacme.errors import NacmeError
from nacme.ood import functional, outliers

if TYPE_CHECKING:
    from nacme.ood.line import LINe
    from nacme.ood.nacue import NACUE
    from nacme.ood.nap import NAP
    from nacme.ood.tuning import Tuning, tune

_HOMES = {
    "NACUE": "nacme.ood.nacue",
    "LINe": "nacme.ood.line",
    "NAP": "nacme.ood.nap",
    "Tuning": "nacme.ood.tuning",
    "tune": "nacme.ood.tuning",
}

__all__ = ["NACUE", "NAP", "LINe", "Tuning", "functional", "outliers", "tune"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nacme.ood' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "pytorch_ood":
            raise
        raise NacmeError(f"nacme.ood.{name} needs pytorch-ood: pip install 'nacme[ood]'") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
