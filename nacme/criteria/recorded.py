"""Which criteria a recording makes, and their values as JSON holds them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nacme.criteria.registry import all_criteria, get_criterion
from nacme.errors import ConfigError, NacmeWarning

if TYPE_CHECKING:
    from nacme.criteria.network import Collected
    from nacme.measurement import Measurement
    from nacme.settings import CoverageSettings

#: Recorded at every checkpoint whatever is asked for.
ALWAYS = ("nac_me", "val_loss")


def chosen_criteria(names: Sequence[str] | None, with_target: bool) -> list[str]:
    """Name the criteria to record that the network's outputs decide.

    Parameters
    ----------
    names : sequence of str, optional
        What is asked for. None: all that take no further pass.
    with_target : bool
        Whether there is unlabelled target data.

    Returns
    -------
    list of str
        Without those of `ALWAYS`.

    Raises
    ------
    ConfigError
        If one needs unlabelled target data, and there is none.
    """
    if names is None:
        seen = {"ind", "target_unlabeled"} if with_target else {"ind"}
        return [
            c.name
            for c in all_criteria().values()
            if c.is_recorded and c.sees in seen and not c.optional and c.name not in ALWAYS
        ]
    chosen = [get_criterion(name) for name in names]
    blind = [c.name for c in chosen if c.sees == "target_unlabeled" and not with_target]
    if blind:
        raise ConfigError(
            f"criterion {blind[0]!r} looks at unlabelled target data; record it with --target_unlabeled"
        )
    return [c.name for c in chosen if c.is_recorded and c.name not in ALWAYS]


def computed(names: Sequence[str], data: Collected, diverged: bool, failed: set[str]) -> dict[str, float | None]:
    """Compute the criteria that are functions of collected outputs, which may be anybody's.

    Parameters
    ----------
    names : sequence of str
        Those that no function computes are passed over.
    data : Collected
    diverged : bool
        Whether logits are NaN. What is computed from them is null then, though it may be a number all the same, as
        the calibration error is.
    failed : set of str
        Names that were warned of; what fails is null, is warned of once and is added.

    Returns
    -------
    dict of str to (float or None)
    """
    values: dict[str, float | None] = {}
    for criterion in map(get_criterion, names):
        if criterion.compute is None:
            continue
        values[criterion.name] = None
        if diverged and "logits" in criterion.needs:
            continue
        try:
            value = criterion.compute(data)
            if not isinstance(value, str):
                values[criterion.name] = number(float(value))
                continue
            problem = f"gave the text {value[:40]!r}, not a number"
        except Exception as error:  # a user's function may raise anything
            problem = f"failed with {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        if criterion.name not in failed:
            failed.add(criterion.name)
            warnings.warn(
                f"criterion {criterion.name!r} {problem}; it is recorded as null", NacmeWarning, stacklevel=2
            )
    return values


def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Make numbers by name, and numbers within these, what JSON holds: see `number`."""
    return {name: numbers(v) if isinstance(v, Mapping) else number(v) for name, v in values.items()}


def number(value: float) -> float | None:
    """Give None for NaN and infinity, which JSON has not."""
    return value if math.isfinite(value) else None


def as_floats(record: Mapping[str, Any]) -> dict[str, float]:
    """Give a record's flat numbers as floats, NaN for None, as loggers take them."""
    flat = {name: value for name, value in record.items() if not isinstance(value, Mapping)}
    return {name: math.nan if value is None else float(value) for name, value in flat.items()}


def settings_and_layers(result: Measurement, settings: CoverageSettings) -> dict[str, Any]:
    """Say for the object ``nac`` how coverage was measured, and what came of it at each layer."""
    return {
        "alpha": settings.alpha,
        "alpha_per_layer": numbers(result.alpha),
        "bins": settings.bins,
        "fill": settings.fill,
        "correct_only": settings.correct_only,
        "layers": list(result.per_layer),
        "per_layer": numbers(result.per_layer),
        "occupied_bins": number(result.occupied_bins),
        "degenerate": result.degenerate,
        "reason": result.reason,
        "full_bins": number(result.full_bins),
        "num_samples": result.num_samples,
        "num_counted": result.num_counted,
    }
