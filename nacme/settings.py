"""The hyper-parameters of NAC-ME, checked, and the keys that records name them by. Needs no torch."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

from nacme.errors import ConfigError, nearest

QUANTITIES = ("product", "activation", "gradient")
#: The recorder's names: ``nac_me_a0p1_m50_o500``; ``_all``: all samples; ``_in``: another split than ``nac_me``'s;
#: ``_at_LAYER``: one of several layers.
KEY = re.compile(
    r"nac_me_a(?P<alpha>auto|[0-9p.e-]+)_m(?P<bins>\d+)_o(?P<fill>[0-9p.e-]+)(?P<all>_all)?"
    r"(?:_(?P<split>in|out))?(?:_at_(?P<layer>.+))?"
)
SETTINGS = ("alpha", "bins", "fill", "samples", "split", "layer")
SPLITS = ("out", "in")
#: How many validation images the criterion craft_acc looks at.
CRAFT_SAMPLES = 200
#: Below so many occupied bins a neuron, and so many full ones, coverage is degenerate: means over neurons.
FEW_BINS, FEW_FULL_BINS = 3.0, 0.1


@dataclass(frozen=True)
class CoverageSettings:
    """Hyper-parameters of NAC-ME.

    Attributes
    ----------
    alpha : float or "auto"
        Steepness of the sigmoid. ``"auto"`` takes it, layer by layer, from the spread of ``z * g`` over the
        samples counted, at the price of keeping one number per sample and neuron until the pass is over.
    bins : int
        ``M``.
    fill : int or float
        ``O``, as a count (int) or as a fraction of the counted samples (float).
    correct_only : bool
        Count correctly classified samples only.
    quantity : {"product", "activation", "gradient"}
        What the state is made of: ``z * g``, or one of the two alone (ablations).
    layer : str, optional
        The one layer that these settings are for, where a recorder measures several. None: all of them.
    split : {"out", "in"}, optional
        The splits that these settings are for, where a recorder measures on several. None: those of ``nac_me``.

    Raises
    ------
    ConfigError
        If a value is of the wrong type or out of range.
    """

    alpha: float | str = 0.1
    bins: int = 50
    fill: int | float = 500
    correct_only: bool = True
    quantity: str = "product"
    layer: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_bins(self.bins)
        check_fill(self.fill)
        if not isinstance(self.correct_only, bool):
            raise ConfigError(f"correct_only={self.correct_only!r} must be True or False")
        if self.quantity not in QUANTITIES:
            raise ConfigError(f"quantity={self.quantity!r} is unknown; {nearest(str(self.quantity), QUANTITIES)}")
        if self.layer is not None and not (isinstance(self.layer, str) and self.layer):
            raise ConfigError(f"layer={self.layer!r} must be the dotted path of a layer, or None for all layers")
        if self.split is not None and self.split not in SPLITS:
            raise ConfigError(f"split={self.split!r} is unknown; {nearest(str(self.split), SPLITS)}")

    def key(self) -> str:
        """Name these settings, for example ``nac_me_a0p1_m50_o500``: the key of a record made with them."""
        alpha, fill = (str(value).replace(".", "p") for value in (self.alpha, self.fill))
        key = f"nac_me_a{alpha}_m{self.bins}_o{fill}" + ("" if self.correct_only else "_all")
        key += f"_{self.split}" if self.split else ""
        return key if self.layer is None else f"{key}_at_{layer_key(self.layer)}"

    def as_json(self) -> dict[str, Any]:
        """List the fields, those that came later only where they are in use: records made before compare equal."""
        fields = asdict(self)
        if self.split is None:
            del fields["split"]
        return fields


@dataclass(frozen=True)
class Setting:
    """What a grid's key stands for.

    Attributes
    ----------
    key : str
    alpha : float or "auto"
    bins : int
    fill : int or float
    samples : {"correct", "all"}
    split : {"main", "out", "in"}
        ``"main"`` for the split that ``nac_me`` is measured on.
    layer : str
        ``"mean"`` for the mean over the layers measured.
    """

    key: str
    alpha: float | str
    bins: int
    fill: int | float
    samples: str
    split: str
    layer: str


def parse_key(key: str) -> Setting | None:
    """Read a grid's key.

    Parameters
    ----------
    key : str
        For example ``nac_me_a0p1_m50_o500``.

    Returns
    -------
    Setting or None
        None where it is no such key.
    """
    found = KEY.fullmatch(key)
    if not found:
        return None
    alpha, fill = (found[name].replace("p", ".") for name in ("alpha", "fill"))
    return Setting(
        key,
        alpha if alpha == "auto" else float(alpha),
        int(found["bins"]),
        int(fill) if fill.isdigit() else float(fill),
        "all" if found["all"] else "correct",
        found["split"] or "main",
        found["layer"] or "mean",
    )


def layer_key(layer: str) -> str:
    """Turn a layer's name into what stands for it in the key of a record."""
    return re.sub(r"[^0-9a-zA-Z]", "_", layer)


def check_alpha(alpha: Any) -> None:
    """Refuse a steepness that is neither a positive number nor ``"auto"``, with a ConfigError."""
    if alpha == "auto" and isinstance(alpha, str):
        return
    if not (_is_number(alpha) and alpha > 0 and math.isfinite(alpha)):
        raise ConfigError(f"alpha={alpha!r} must be a positive number or 'auto'")


def check_bins(bins: Any) -> None:
    """Refuse a number of bin edges that is no whole number of at least 2, with a ConfigError."""
    if isinstance(bins, bool) or not isinstance(bins, Integral):
        raise ConfigError(f"bins={bins!r} must be a whole number, such as 50")
    if bins < 2:
        raise ConfigError(f"bins={bins} must be at least 2: bins are counted between that many edges")


def check_fill(fill: Any) -> None:
    """Refuse an ``O`` that is neither a positive count nor a fraction of at most 1, with a ConfigError."""
    whole = isinstance(fill, Integral)
    if not (_is_number(fill) and math.isfinite(fill) and fill > 0 and (whole or fill <= 1)):
        raise ConfigError(
            f"fill={fill!r} must be a positive count (int) or a fraction of the samples (float <= 1)"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
