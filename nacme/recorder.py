"""Recording criteria at a checkpoint: one pass over each split gives accuracy, coverage and the rest."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from nacme.errors import ConfigError, DegenerateCoverageWarning
from nacme.measurement import (
    CoverageCounter,
    CoverageSettings,
    Tally,
    degenerate_message,
    is_correct,
    mean,
    observe,
    summarize,
)


class Recorder:
    """Measure a model on its in-distribution validation splits, checkpoint after checkpoint.

    Parameters
    ----------
    model : nn.Module
        A DomainBed algorithm, or any module that gives logits from ``predict(x)`` or ``forward``.
    loaders : mapping of str to iterable
        The validation loader of each training environment, by name.
    coverage_loaders : mapping of str to iterable, optional
        What coverage is measured on, where that is another split. None: ``loaders``.
    settings : CoverageSettings, optional
        Hyper-parameters of NAC-ME. None: the authors'.
    grid : sequence of CoverageSettings
        Further settings to record from the same pass, each under the key `CoverageSettings.key` gives it.
    layers : sequence of str, optional
        Dotted module paths. None: what feeds the linear layer that produces the logits.
    device : torch.device or str, optional
        Where batches are moved to. None: where the model is.
    notes : mapping, optional
        Entries to add to the record's ``nac`` object, for example which split was used.

    Raises
    ------
    ConfigError
        If there is nothing to measure on.

    Examples
    --------
    In a training loop of one's own:

    >>> model = nn.Linear(4, 3)
    >>> loader = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    >>> recorder = Recorder(model, {"env0_out": loader}, settings=CoverageSettings(alpha=10.0, fill=0.1))
    >>> results = {"step": 0}
    >>> results.update(recorder.record())
    >>> sorted(results)
    ['nac', 'nac_me', 'step', 'val_loss']
    """

    def __init__(
        self,
        model: nn.Module,
        loaders: Mapping[str, Iterable[Any]],
        *,
        coverage_loaders: Mapping[str, Iterable[Any]] | None = None,
        settings: CoverageSettings | None = None,
        grid: Sequence[CoverageSettings] = (),
        layers: Sequence[str] | None = None,
        device: torch.device | str | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.loaders = dict(loaders)
        self.coverage_loaders = dict(loaders if coverage_loaders is None else coverage_loaders)
        if not self.loaders or not self.coverage_loaders:
            raise ConfigError("a recorder needs at least one validation loader")
        self.settings = settings or CoverageSettings()
        self.grid = {setting.key(): setting for setting in grid}
        self.layers = layers
        self.device = device
        self.notes = dict(notes or {})
        self.warned = False

    def record(self) -> dict[str, Any]:
        """Measure the model as it is now.

        Returns
        -------
        dict
            Flat floats by criterion and the object ``nac``, ready for JSON: None where a value could not be
            computed.
        """
        recording = self.start()
        for name, loader in {**self.coverage_loaders, **self.loaders}.items():
            recording.evaluate(name, loader)
        return recording.finish()

    def start(self) -> Recording:
        """Begin a checkpoint whose splits are evaluated one by one, in an order that the caller decides.

        Returns
        -------
        Recording
        """
        return Recording(self)


class Recording:
    """One checkpoint's measurements; see `Recorder.start`."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._tallies: dict[str, Tally] = {}
        self._covered = Tally()
        self._counters: dict[CoverageSettings, CoverageCounter] = {}
        for settings in (recorder.settings, *recorder.grid.values()):
            counted = _as_counted(settings)
            self._counters[counted] = CoverageCounter(counted)

    def evaluate(self, name: str, loader: Iterable[Any]) -> float:
        """Pass over a split.

        Parameters
        ----------
        name : str
            The split's name, one of the recorder's loaders.
        loader : iterable
            Of ``(x, y, ...)``.

        Returns
        -------
        float
            Its accuracy.
        """
        covers = name in self._recorder.coverage_loaders
        tally = self._tallies[name] = Tally()
        for reading, labels in observe(self._recorder.model, loader, self._recorder.layers, self._recorder.device):
            correct = is_correct(reading.logits, labels)
            tally.update(reading.logits, labels, correct)
            if covers:
                self._covered.update(reading.logits, labels, correct)
                for counter in self._counters.values():
                    counter.update(reading, correct)
        return tally.accuracy()

    def finish(self) -> dict[str, Any]:
        """Put the record together.

        Returns
        -------
        dict
            See `Recorder.record`.
        """
        recorder, settings = self._recorder, self._recorder.settings
        for counter in self._counters.values():
            counter.finish()
        counter = self._counters[_as_counted(settings)]
        result = summarize(self._covered, counter, settings.fill)
        if result.degenerate and not recorder.warned:
            recorder.warned = True
            warnings.warn(degenerate_message(result.occupied_bins), DegenerateCoverageWarning, stacklevel=2)
        values, grid = self._variants()
        losses = [tally.mean_loss() for name, tally in self._tallies.items() if name in recorder.loaders]
        return {
            "nac_me": _number(result.nac_me),
            **values,
            # a mean over environments, as val_acc is
            "val_loss": _number(mean(losses)),
            "nac": {
                "alpha": settings.alpha,
                "alpha_per_layer": {name: _number(alpha) for name, alpha in result.alpha.items()},
                "bins": settings.bins,
                "fill": settings.fill,
                "correct_only": settings.correct_only,
                "layers": list(result.per_layer),
                "per_layer": {name: _number(value) for name, value in result.per_layer.items()},
                "occupied_bins": _number(result.occupied_bins),
                "degenerate": result.degenerate,
                "num_samples": result.num_samples,
                "num_counted": result.num_counted,
                "grid": grid,
                **recorder.notes,
            },
        }

    def _variants(self) -> tuple[dict[str, float | None], dict[str, dict[str, Any]]]:
        """NAC-ME of the grid's settings, and of each layer alone where there are several; and what they are."""
        values: dict[str, float | None] = {}
        grid: dict[str, dict[str, Any]] = {}
        for key, settings in {"nac_me": self._recorder.settings, **self._recorder.grid}.items():
            per_layer = self._counters[_as_counted(settings)].per_layer(settings.fill)
            if key != "nac_me":
                values[key] = _number(mean(list(per_layer.values())))
                grid[key] = asdict(settings)
            if len(per_layer) > 1:
                for layer, value in per_layer.items():
                    at = f"{key}_at_{re.sub(r'[^0-9a-zA-Z]', '_', layer)}"
                    values[at] = _number(value)
                    grid[at] = {**asdict(settings), "layer": layer}
        return values, grid


def _as_counted(settings: CoverageSettings) -> CoverageSettings:
    """Settings whose states are counted alike: the counts serve for any fill."""
    return replace(settings, fill=1)


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
