"""What is recorded at each checkpoint: the same choices for training, scoring and sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, TypeVar

from nacme.criteria.registry import load_criteria_module
from nacme.errors import ConfigError
from nacme.settings import CRAFT_SAMPLES, CoverageSettings

#: What asks for the authors' layers, and for what feeds the last linear layer.
AUTHORS, PENULTIMATE = "authors", "penultimate"

AnyOptions = TypeVar("AnyOptions", bound="RecordOptions")


@dataclass(frozen=True)
class RecordOptions:
    """What is recorded at each checkpoint.

    Attributes
    ----------
    settings : CoverageSettings
        Of ``nac_me``.
    grid : tuple of CoverageSettings
        Further settings to record from the same pass; one that names a split is measured there.
    layers : {"authors", "penultimate"} or sequence of str, optional
        Where ``nac_me`` is measured: see `domainbed_plugins.recording.layers`. None: the authors' layers, or those
        that the run or sweep was begun with.
    split : {"out", "in"}
        The training environments' splits that ``nac_me`` is measured on.
    criteria : list of str, optional
        Criteria to record beside NAC-ME and the validation loss. None: all that take no further pass.
    target_unlabeled : bool
        Whether to record criteria that look at unlabelled target data, the test environments' ``out`` splits.
    criteria_module : str, optional
        A module or ``.py`` file that registers criteria.
    craft_samples : int
        Validation images that the criterion ``craft_acc`` looks at.
    """

    settings: CoverageSettings = field(default_factory=CoverageSettings)
    _: KW_ONLY
    grid: tuple[CoverageSettings, ...] = ()
    layers: str | Sequence[str] | None = None
    split: str = "out"
    criteria: list[str] | None = None
    target_unlabeled: bool = False
    criteria_module: str | None = None
    craft_samples: int = CRAFT_SAMPLES

    def load_criteria(self) -> None:
        """Register the criteria of the user's module, if there is one."""
        if self.criteria_module:
            load_criteria_module(self.criteria_module)

    def further_splits(self) -> list[str]:
        """Splits that only settings of the grid are measured on."""
        return sorted({settings.split for settings in self.grid if settings.split})

    def splits(self) -> list[str]:
        """Splits of the training environments that coverage is measured on."""
        return sorted({self.split, *self.further_splits()})

    def as_json(self) -> dict[str, Any]:
        """Say in JSON what is asked for, so that a later part of a run or sweep can be held against it."""
        named = self.layers is None or isinstance(self.layers, str)
        return {
            "settings": self.settings.as_json(),
            "grid": [settings.as_json() for settings in self.grid],
            "layers": self.layers if named else list(self.layers or ()),
            "split": self.split,
            "criteria": self.criteria,
            "target_unlabeled": self.target_unlabeled,
            # what was begun before this could be asked for goes on
            **({} if self.craft_samples == CRAFT_SAMPLES else {"craft_samples": self.craft_samples}),
        }


def begun_layers(asked: Any, recorded: Sequence[str]) -> Any:
    """Tell which layers were meant by what was written down when a run, or its scoring, was begun.

    Parameters
    ----------
    asked : Any
        As `RecordOptions.as_json` wrote it. None stood for the penultimate layer before the authors' layers became
        the default.
    recorded : sequence of str
        The layers that a record names. The input of a module is the penultimate layer.

    Returns
    -------
    Any
        ``"authors"``, ``"penultimate"`` or a list.
    """
    if asked is not None:
        return asked
    return PENULTIMATE if any(name.endswith(":input") for name in recorded) else AUTHORS


def as_begun(options: AnyOptions, layers: Any) -> AnyOptions:
    """Go on at the layers that something was begun with, where none are asked for.

    Parameters
    ----------
    options : RecordOptions
    layers : Any
        See `begun_layers`.

    Returns
    -------
    RecordOptions
        Of the same type.
    """
    if options.layers is None and layers in (AUTHORS, PENULTIMATE):
        return replace(options, layers=layers)
    return options


def read_layers(names: Sequence[str] | None) -> str | list[str] | None:
    """Read a list of layers as a flag or a specification gives it.

    Parameters
    ----------
    names : sequence of str, optional

    Returns
    -------
    {"authors", "penultimate"} or list of str, optional

    Raises
    ------
    ConfigError
        If ``authors`` or ``penultimate`` stands beside others.
    """
    if names is None:
        return None
    for name in (AUTHORS, PENULTIMATE):
        if name in names:
            if len(names) > 1:
                raise ConfigError(f"layers {' '.join(names)}: {name} stands for all layers; give it alone")
            return name
    return list(names)
