"""DomainBed's model selection by recorded criteria: ``SelectionMethod`` subclasses for NAC-ME and the others.

A class is had by its criterion's name, ``selection_method("nac_me")``, or imported as ``NacMeSelectionMethod``.
They are made when asked for, since their base class is DomainBed's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from domainbed_plugins.backends import find as backends
from nacme.criteria.registry import get_criterion, recorded_names
from nacme.errors import CriterionError

_SUFFIX = "SelectionMethod"


@functools.cache
def selection_method(criterion: str) -> type[Any]:
    """Make the ``SelectionMethod`` that takes the checkpoint with the best value of a recorded criterion.

    Parameters
    ----------
    criterion : str
        For example ``"nac_me"``, ``"val_loss"`` or ``"nac_me_a1p0_m50_o500"``.

    Returns
    -------
    type
        A subclass of ``domainbed.model_selection.SelectionMethod``. Records that lack the criterion, or hold null,
        are left out; a run of such records gives None. Its ``val_acc`` is the criterion, turned so that higher is
        better.

    Raises
    ------
    CriterionError
        If there is no such criterion, or the records do not hold it under its own key.
    ConfigError
        If DomainBed cannot be found.
    """
    chosen = get_criterion(criterion)
    if not chosen.is_recorded:
        raise CriterionError(
            f"criterion {criterion!r} is no key of the records; those are {', '.join(recorded_names())}"
        )
    model_selection = backends.module("model_selection")
    sign = 1.0 if chosen.higher_is_better else -1.0

    class RecordedSelectionMethod(model_selection.SelectionMethod):  # type: ignore[misc, name-defined]
        name = f"{criterion} ({'highest' if chosen.higher_is_better else 'lowest'})"

        @classmethod
        def _step_acc(cls, record: Mapping[str, Any]) -> dict[str, float] | None:
            value = record.get(criterion)
            if value is None or not math.isfinite(value):
                return None
            return {"val_acc": sign * value, "test_acc": record[f"env{record['args']['test_envs'][0]}_in_acc"]}

        @classmethod
        def run_acc(cls, run_records: Any) -> dict[str, float] | None:
            accs = model_selection.get_test_records(run_records).map(cls._step_acc).filter_not_none()
            return accs.argmax("val_acc") if len(accs) else None

    RecordedSelectionMethod.__name__ = RecordedSelectionMethod.__qualname__ = _class_name(criterion)
    RecordedSelectionMethod.__doc__ = f"Pick by {criterion}: {chosen.description}"
    return RecordedSelectionMethod


def recorded_in(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Name the recorded criteria that some record has a value of.

    Parameters
    ----------
    records : iterable of mapping

    Returns
    -------
    list of str
        Registered ones first, then NAC-ME with the other settings that the records' own ``nac.grid`` names.
    """
    held: dict[str, None] = {}
    grid: dict[str, None] = {}
    for record in records:
        held.update(dict.fromkeys(key for key, value in record.items() if value is not None))
        grid.update(dict.fromkeys((record.get("nac") or {}).get("grid") or ()))
    return [name for name in dict.fromkeys([*recorded_names(), *sorted(grid)]) if name in held]


def _class_name(criterion: str) -> str:
    return "".join(part.capitalize() for part in criterion.split("_")) + _SUFFIX


def __getattr__(name: str) -> type[Any]:
    for criterion in recorded_names() if name.endswith(_SUFFIX) else ():
        if _class_name(criterion) == name:
            return selection_method(criterion)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *map(_class_name, recorded_names())]
