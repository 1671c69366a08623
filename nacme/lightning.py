"""A Lightning callback that logs coverage and its rivals, for checkpoints and loggers (``nacme[lightning]``)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nacme.errors import ConfigError, NacmeError
from nacme.recorder import Recorder
from nacme.settings import CoverageSettings

try:
    import lightning.pytorch as pl
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "lightning":
        raise
    raise NacmeError("nacme.lightning needs Lightning: pip install 'nacme[lightning]'") from None


class Coverage(pl.Callback):
    """Measure NAC-ME and other criteria when validation ends, and log them.

    ``ModelCheckpoint(monitor="nac_me", mode="max")`` then keeps the checkpoint of the widest coverage. Training
    goes as it does without the callback, to the last digit: no random number of it is drawn here.

    Parameters
    ----------
    settings : CoverageSettings, optional
        Hyper-parameters of NAC-ME. None: the authors'.
    layers : sequence of str, optional
        Dotted module paths within the network. None: what feeds the linear layer that produces the logits.
    criteria : sequence of str, optional
        As for `nacme.Recorder`.
    dataloaders : sequence of int, optional
        Which of the trainer's validation dataloaders are looked at, counted from 0. None: all of them. One of a
        held-out domain must not be among them.
    loaders : mapping of str to iterable, optional
        What to measure on instead of the trainer's validation dataloaders. Needed in distributed training, where
        those are each process's own part: every process then measures all of ``loaders``.
    network : str, optional
        Dotted path of the module that gives logits, within the LightningModule. None: the LightningModule itself,
        by its ``forward``.
    prefix : str
        Comes before the names that are logged.

    Raises
    ------
    ConfigError
        If ``dataloaders`` and ``loaders`` are both given; in training, if there is nothing to measure on.

    Notes
    -----
    What the module has logged under a criterion's name, as ``val_loss`` often is, stays the module's. It takes one
    more pass over the validation data, limited as ``limit_val_batches`` limits it; the check before training is
    left out. A value that could not be computed is NaN.

    Examples
    --------
    >>> from lightning.pytorch.callbacks import ModelCheckpoint
    >>> callbacks = [Coverage(), ModelCheckpoint(monitor="nac_me", mode="max")]
    """

    def __init__(
        self,
        settings: CoverageSettings | None = None,
        *,
        layers: Sequence[str] | None = None,
        criteria: Sequence[str] | None = None,
        dataloaders: Sequence[int] | None = None,
        loaders: Mapping[str, Iterable[Any]] | None = None,
        network: str | None = None,
        prefix: str = "",
    ) -> None:
        if dataloaders is not None and loaders is not None:
            raise ConfigError("give dataloaders, the trainer's by their place, or loaders of your own, not both")
        self.dataloaders, self.loaders, self.network, self.prefix = dataloaders, loaders, network, prefix
        self._options: dict[str, Any] = {"settings": settings, "layers": layers, "criteria": criteria}
        self._recorder: Recorder | None = None
        self._names: list[str] | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last fit's loaders and names."""
        self._recorder = self._names = None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, and log what the module has not logged itself."""
        if trainer.sanity_checking:
            return
        if self._recorder is None:
            self._recorder = Recorder(self._network(pl_module), self._loaders(trainer), **self._options)
        # batches are made anew, outside inference mode: a graph may have to be built from them
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            record = self._recorder.record(floats_only=True)
        values = {f"{self.prefix}{name}": value for name, value in record.items()}
        if self._names is None:
            self._names = [name for name in values if name not in trainer.callback_metrics]
        pl_module.log_dict({name: value for name, value in values.items() if name in self._names})

    def _network(self, module: pl.LightningModule) -> nn.Module:
        if self.network is None:
            return module
        try:
            return module.get_submodule(self.network)
        except AttributeError:
            known = ", ".join(name for name, _ in module.named_children())
            raise ConfigError(
                f"network={self.network!r} is no module of the LightningModule; it has {known}"
            ) from None

    def _loaders(self, trainer: pl.Trainer) -> Mapping[str, Iterable[Any]]:
        if self.loaders is not None:
            return self.loaders
        if trainer.world_size > 1:
            raise ConfigError(
                "in distributed training the validation dataloaders are each process's own part; give "
                "nacme.lightning.Coverage(loaders={...}), which every process measures in full"
            )
        count = len(_flat(trainer.val_dataloaders))
        chosen = range(count) if self.dataloaders is None else self.dataloaders
        for place in chosen:
            if place not in range(count):
                raise ConfigError(f"dataloaders={list(chosen)} names number {place}; there are {count}, from 0 on")
        return {f"val{place}": _Validation(trainer, place) for place in chosen}


class _Validation:
    """One of a trainer's validation dataloaders as it is at the time, no longer than the trainer's limit."""

    def __init__(self, trainer: pl.Trainer, place: int) -> None:
        self._trainer, self._place = trainer, place

    def __iter__(self) -> Iterator[Any]:
        limit = self._trainer.num_val_batches[self._place]
        loader = _flat(self._trainer.val_dataloaders)[self._place]
        return itertools.islice(loader, None if limit == math.inf else int(limit))


def _flat(loaders: Any) -> list[Any]:
    """List validation dataloaders, given one, several in a row or by name."""
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]
