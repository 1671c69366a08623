"""Recording criteria at a checkpoint: one pass over each split gives accuracy, coverage and the rest."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nacme.counting import BatchStates, CoverageCounter, mean
from nacme.criteria.counter import Counter
from nacme.criteria.network import Collected
from nacme.criteria.recorded import as_floats, chosen_criteria, computed, number, numbers, settings_and_layers
from nacme.criteria.registry import get_criterion
from nacme.errors import ConfigError, DegenerateCoverageWarning, NacmeWarning
from nacme.loaders import TestEnvs, by_name, refuse_test_envs
from nacme.measurement import NAN_LOGITS, Tally, degenerate_message, is_correct, summarize
from nacme.observation import not_empty, observing
from nacme.settings import CRAFT_SAMPLES, CoverageSettings, layer_key
from nacme.taps import Reading, Taps


class Recorder:
    """Measure a model on its in-distribution validation splits, checkpoint after checkpoint.

    Parameters
    ----------
    model : nn.Module
        A DomainBed algorithm, or any module that gives logits from ``predict(x)`` or ``forward``.
    loaders : mapping of str to iterable, or iterable
        The validation loader of each training environment, by name; a single one is called ``val``.
    coverage_loaders : mapping of str to iterable, optional
        What coverage is measured on, where that is another split. None: ``loaders``.
    further_loaders : mapping of str to (mapping of str to iterable), optional
        By split, ``"out"`` or ``"in"``: what settings of the grid are measured on that name another split than
        ``nac_me``'s. Loaders of one name are one loader, and are passed over once.
    settings : CoverageSettings, optional
        Hyper-parameters of NAC-ME. None: the authors'.
    grid : sequence of CoverageSettings
        Further settings to record from the same pass, each under the key `CoverageSettings.key` gives it. Some
        may be for a layer of their own, which ``nac_me`` itself has no part in.
    criteria : sequence of str, optional
        Names of the criteria to record beside NAC-ME. None: every registered one that looks at in-distribution
        data (at target data too, given ``target_loaders``) and takes no further pass.
    target_loaders : mapping of str to iterable, optional
        Unlabelled target splits, for criteria that look at them. Their batches need no labels, and what stands in
        their place is used for nothing but the accuracy that `Recording.evaluate` returns.
    layers : sequence of str, optional
        Dotted module paths. None: what feeds the linear layer that produces the logits.
    device : torch.device or str, optional
        Where batches are moved to. None: where the model is.
    notes : mapping, optional
        Entries to add to the record's ``nac`` object, for example which split was used.
    craft_samples : int
        Validation images that the criterion ``craft_acc`` looks at, of all environments together.
    test_envs : sequence of int
        Held-out environments, also as a list of lists. Loaders are named ``env{i}_...`` then, and one of these is
        refused everywhere but in ``target_loaders``.
    remedy : str
        What a warning of degenerate coverage says to do: see `nacme.measurement.degenerate_message`.

    Raises
    ------
    ConfigError
        If there is nothing to measure on, or a loader is of a test environment.
    LayerError
        If the model has no such layer.

    Examples
    --------
    In a training loop of one's own:

    >>> model = nn.Linear(4, 3)
    >>> loader = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    >>> settings = CoverageSettings(alpha=10.0, fill=0.1)
    >>> recorder = Recorder(model, {"env0_out": loader}, settings=settings, criteria=["ece"])
    >>> results = {"step": 0}
    >>> results.update(recorder.record())
    >>> sorted(results)
    ['ece', 'nac', 'nac_me', 'step', 'val_acc', 'val_loss']
    """

    def __init__(
        self,
        model: nn.Module,
        loaders: Mapping[str, Iterable[Any]] | Iterable[Any],
        *,
        coverage_loaders: Mapping[str, Iterable[Any]] | None = None,
        further_loaders: Mapping[str, Mapping[str, Iterable[Any]]] | None = None,
        settings: CoverageSettings | None = None,
        grid: Sequence[CoverageSettings] = (),
        criteria: Sequence[str] | None = None,
        target_loaders: Mapping[str, Iterable[Any]] | None = None,
        layers: Sequence[str] | None = None,
        device: torch.device | str | None = None,
        notes: Mapping[str, Any] | None = None,
        craft_samples: int = CRAFT_SAMPLES,
        test_envs: TestEnvs = (),
        remedy: str = "give settings=CoverageSettings({python}), or rank by nac_me_robust",
    ) -> None:
        self.model = model
        self.loaders = by_name(loaders)
        self.coverage_loaders = dict(self.loaders if coverage_loaders is None else coverage_loaders)
        if not self.loaders or not self.coverage_loaders:
            raise ConfigError("a recorder needs at least one validation loader")
        self.further_loaders = {split: dict(named) for split, named in (further_loaders or {}).items()}
        for looked_at in (self.loaders, self.coverage_loaders, *self.further_loaders.values()):
            refuse_test_envs(looked_at, test_envs)
        self.settings = settings or CoverageSettings()
        self.grid = {setting.key(): setting for setting in grid}
        if self.settings.split is not None:
            raise ConfigError("the split of nac_me is that of coverage_loaders; leave settings.split away")
        lacking = {setting.split for setting in grid if setting.split} - self.further_loaders.keys()
        if lacking:
            raise ConfigError(f"the grid has settings for the split {min(lacking)!r}; give its further_loaders")
        self.target_loaders = dict(target_loaders or {})
        self.criteria = chosen_criteria(criteria, with_target=bool(self.target_loaders))
        self.ablations = {
            name: replace(self.settings, **changes)
            for name in self.criteria
            if (changes := get_criterion(name).changes) is not None
        }
        self.further = sorted({setting.layer for setting in grid if setting.layer is not None} - set(layers or ()))
        # a layer that does not exist is better told before training than at a checkpoint
        Taps(model, layers, self.further)
        self.layers = layers
        self.device = device
        self.notes = dict(notes or {})
        self.warned = self.warned_of_nan = False
        #: Names of the criteria that could not be computed; each is warned of once.
        self.failed: set[str] = set()
        if isinstance(craft_samples, bool) or not isinstance(craft_samples, int) or craft_samples < 1:
            raise ConfigError(f"craft_samples={craft_samples!r} must be a whole number of images, at least 1")
        self.craft_samples, self.remedy = craft_samples, remedy
        #: States counted for ``nac_me`` at the last checkpoint recorded: [N, bins - 1] by layer, on the CPU.
        self.counts: dict[str, Tensor] = {}

    def record(self, model: nn.Module | None = None, *, floats_only: bool = False) -> dict[str, Any]:
        """Measure the model as it is now, or another one.

        Parameters
        ----------
        model : nn.Module, optional
            Measured instead, for example an average of the weights.
        floats_only : bool
            Leave ``nac`` out, and give NaN for None: what TensorBoard, W&B and MLflow take.

        Returns
        -------
        dict
            Flat floats by criterion, ``val_acc`` among them (a mean over the loaders), and the object ``nac``,
            ready for JSON: None where a value could not be computed.
        """
        recording = Recording(self, model)
        for name, loader in self.measured().items():
            recording.evaluate(name, loader)
        record = {
            **recording.finish(),
            "val_acc": number(mean([recording.accuracy(name) for name in self.loaders])),
        }
        return as_floats(record) if floats_only else record

    def measured(self) -> dict[str, Iterable[Any]]:
        """Every loader that a checkpoint's record needs a pass over, by name.

        Returns
        -------
        dict of str to iterable
        """
        further = {name: loader for named in self.further_loaders.values() for name, loader in named.items()}
        return {**self.coverage_loaders, **further, **self.loaders, **self.target_loaders}

    def memory(self, samples: int, width: int) -> int:
        """Estimate what a recording holds until it is finished.

        Parameters
        ----------
        samples : int
            In all loaders together.
        width : int
            Neurons of a layer.

        Returns
        -------
        int
            Bytes.
        """
        distinct = {_as_counted(s) for s in (self.settings, *self.grid.values(), *self.ablations.values())}
        layers = [1 if settings.layer else max(1, len(self.layers or ())) for settings in distinct]
        counts = sum(8 * width * settings.bins * n for settings, n in zip(distinct, layers))
        splits, tapped = len(self.coverage_loaders), max(1, len(self.layers or ()))
        counts += sum(c.memory(samples, width, splits, tapped) for c in self.counters().values())
        # activations and gradients for the criteria, and the products that "auto" holds back
        rows = 2 + sum(n for settings, n in zip(distinct, layers) if settings.alpha == "auto")
        return counts + 4 * samples * width * rows

    def counters(self) -> dict[str, Counter]:
        """Make a fresh counter for each criterion that has one."""
        made = {name: get_criterion(name).counter for name in self.criteria}
        return {name: make() for name, make in made.items() if make is not None}

    def start(self) -> Recording:
        """Begin a checkpoint whose splits are evaluated one by one, in an order that the caller decides.

        Returns
        -------
        Recording
        """
        return Recording(self)


class Recording:
    """One checkpoint's measurements; see `Recorder.start`."""

    def __init__(self, recorder: Recorder, model: nn.Module | None = None) -> None:
        self._recorder, self._model = recorder, model or recorder.model
        self._tallies: dict[str, Tally] = {}
        self._covered = Tally()
        self._counters: dict[CoverageSettings, CoverageCounter] = {}
        for settings in (recorder.settings, *recorder.grid.values(), *recorder.ablations.values()):
            counted = _as_counted(settings)
            self._counters[counted] = CoverageCounter(counted)
        self._own = recorder.counters()
        # what the criteria look at, by what it is and split: the pass's outputs, left on their device
        self._kept: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        computed = [c for c in map(get_criterion, recorder.criteria) if c.compute is not None]
        self._needs = {need for c in computed for need in c.needs}

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
            Its accuracy; NaN without labels, or if a logit is NaN.
        """
        with self.split(name) as update:
            for batch in not_empty(loader):
                update(batch)
        return self.accuracy(name)

    @contextmanager
    def split(self, name: str) -> Iterator[Callable[[Any], None]]:
        """Begin a split whose batches the caller hands over one by one, as to several recordings at once.

        Parameters
        ----------
        name : str
            One of the recorder's loaders.

        Yields
        ------
        callable
            Takes a batch, ``(x, y, ...)``. What it raises, a pass over the split would.
        """
        recorder = self._recorder
        covers = name in recorder.coverage_loaders
        splits = {split for split, named in recorder.further_loaders.items() if name in named}
        counted = [
            (settings.layer, counter)
            for settings, counter in self._counters.items()
            if (covers if settings.split is None else settings.split in splits)
        ]
        tally = self._tallies[name] = Tally()
        # labels of a split that only target criteria look at play no part, but for the accuracy that is returned
        labelled = covers or bool(splits) or name in recorder.loaders
        with observing(self._model, recorder.layers, recorder.device, recorder.further, labelled) as read:

            def update(batch: Any) -> None:
                whole, labels = read(batch)
                reading = whole.only(whole.activations.keys() - recorder.further)
                if not labelled:
                    self._keep(name, reading, labels)
                    if len(labels):
                        tally.count(reading.logits, is_correct(reading.logits, labels))
                    return
                correct = is_correct(reading.logits, labels)
                tally.update(reading.logits, labels, correct)
                self._keep(name, reading, labels)
                if covers:
                    self._covered.update(reading.logits, labels, correct)
                    for own in self._own.values():
                        own.update(name, reading, correct)
                batch = BatchStates(whole, correct)
                for layer, counter in counted:
                    counter.count(batch, reading.activations if layer is None else [layer])

            yield update

    def accuracy(self, name: str) -> float:
        """Accuracy on a split that has been passed over."""
        return self._tallies[name].accuracy()

    def _keep(self, name: str, reading: Reading, labels: Tensor) -> None:
        if name in self._recorder.target_loaders:
            self._kept["target_logits"][name].append(reading.logits)
        if name not in self._recorder.loaders or not self._needs:
            return
        first = next(iter(reading.activations))
        self._kept["logits"][name].append(reading.logits)
        self._kept["labels"][name].append(labels)
        if "features" in self._needs:
            self._kept["features"][name].append(reading.activations[first])
        if "gradients" in self._needs:
            self._kept["gradients"][name].append(reading.gradients[first])

    def _criteria(self) -> dict[str, float | None]:
        """Compute the criteria that look at collected outputs."""
        recorder = self._recorder
        values: dict[str, float | None] = {}
        for name, settings in recorder.ablations.items():
            per_layer = self._counters[_as_counted(settings)].per_layer(settings.fill)
            values[name] = number(mean(list(per_layer.values())))
        values |= {name: number(own.value()) for name, own in self._own.items()}
        whole = {
            kind: {split: _on_cpu(parts) for split, parts in splits.items()} for kind, splits in self._kept.items()
        }
        fields = ("logits", "labels", "features", "gradients", "target_logits")
        data = Collected(
            self._model,
            **{kind: whole.get(kind, {}) for kind in fields},
            loaders=recorder.loaders,
            craft_samples=recorder.craft_samples,
        )
        if "sham_count" in recorder.criteria:
            counter = self._counters[_as_counted(recorder.settings)]
            values["sham_count"] = number(counter.num_counted() / self._covered.num_samples)
        diverged = any(bool(self._tallies[name].found_nan) for name in recorder.loaders)
        values |= computed(recorder.criteria, data, diverged, recorder.failed)
        return values

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
        recorder.counts = {name: metric.counts.cpu() for name, metric in counter.coverage.items()}
        result = summarize(self._covered, counter, settings.fill)
        if result.reason is not None and not recorder.warned:
            recorder.warned = True
            message = degenerate_message(result.reason, settings, recorder.remedy)
            warnings.warn(message, DegenerateCoverageWarning, stacklevel=2)
        diverged = [name for name, tally in self._tallies.items() if bool(tally.found_nan)]
        if diverged and not recorder.warned_of_nan:
            recorder.warned_of_nan = True
            warnings.warn(NAN_LOGITS.format(", ".join(diverged)), NacmeWarning, stacklevel=2)
        values, grid = self._variants()
        losses = [tally.mean_loss() for name, tally in self._tallies.items() if name in recorder.loaders]
        return {
            "nac_me": number(result.nac_me),
            **values,
            **self._criteria(),
            # a mean over environments, as val_acc is
            "val_loss": number(mean(losses)),
            "nac": {
                **settings_and_layers(result, settings),
                "grid": grid,
                **{name: numbers(own.details()) for name, own in self._own.items()},
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
                values[key] = number(mean(list(per_layer.values())))
                grid[key] = settings.as_json()
            if len(per_layer) > 1:
                for layer, value in per_layer.items():
                    at = f"{key}_at_{layer_key(layer)}"
                    values[at] = number(value)
                    grid[at] = {**settings.as_json(), "layer": layer}
        return values, grid


def _on_cpu(parts: list[Tensor]) -> Tensor:
    whole = torch.cat(parts).cpu()
    return whole.float() if whole.is_floating_point() else whole


def _as_counted(settings: CoverageSettings) -> CoverageSettings:
    """Settings whose states are counted alike: the counts serve for any fill."""
    return replace(settings, fill=1)
