"""Averages of a run's weights, kept beside the training that they leave alone: ``--average sma ema``.

Source: ``torch.optim.swa_utils.AveragedModel``. ``sma`` is the uniform mean of the weights after every step from
``--average_from`` on, as in "Ensemble of Averages" (2110.10832); ``ema`` is an exponential moving average.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn
from torch.utils.data import DataLoader

from domainbed_plugins.data.splits import EVAL_BATCH_SIZE, Splits
from domainbed_plugins.data.streams import collate, in_memory
from nacme.errors import ConfigError
from nacme.taps import untouched

KINDS = ("sma", "ema")
#: Minibatches of each training environment that batch-norm statistics are taken from, at most.
REFRESH_BATCHES = 20


def first_step(start: int | float, n_steps: int) -> int:
    """Say after which step averages begin.

    Parameters
    ----------
    start : int or float
        A step, or (float) a part of the steps.
    n_steps : int

    Returns
    -------
    int

    Raises
    ------
    ConfigError
        If the run has no such step.
    """
    step = int(start * n_steps) if isinstance(start, float) else start
    if not 0 <= step < n_steps or (isinstance(start, float) and not 0 <= start < 1):
        raise ConfigError(
            f"--average_from {start}: a step below the run's {n_steps}, a part of them from 0 to below 1, or eoa"
        )
    return step


def check_average(kinds: Sequence[str], start: int | float, decay: float, n_steps: int) -> None:
    """Refuse averages that cannot be kept.

    Parameters
    ----------
    kinds : sequence of str
    start, n_steps
        See `first_step`.
    decay : float

    Raises
    ------
    ConfigError
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or len(set(kinds)) < len(kinds):
        raise ConfigError(f"--average {' '.join(kinds)}: choose among {', '.join(KINDS)}, each once")
    if not 0 <= decay < 1:
        raise ConfigError(f"--average_decay {decay}: a number from 0 to below 1, such as 0.995")
    if kinds:
        first_step(start, n_steps)


class Averages:
    """The averages of one run.

    Only parameters are averaged. Buffers are the run's own, but for batch-norm statistics that training moves:
    these are taken anew, from training batches that pass through the averaged network.

    Parameters
    ----------
    algorithm : nn.Module
        Whose parameters are followed: those that it has before its first step.
    kinds : sequence of {"sma", "ema"}
    start : int
        The first step after which weights are averaged.
    decay : float
        Of ``ema``.
    """

    def __init__(self, algorithm: nn.Module, kinds: Sequence[str], start: int, decay: float) -> None:
        self._algorithm = algorithm
        self._start = start
        self._live = nn.ParameterList(algorithm.parameters())
        rules: dict[str, Any] = {
            "sma": get_swa_multi_avg_fn(),  # type: ignore[no-untyped-call]
            "ema": get_ema_multi_avg_fn(decay),  # type: ignore[no-untyped-call]
        }
        self._models = {
            kind: AveragedModel(self._live, multi_avg_fn=rules[kind]) for kind in KINDS if kind in kinds
        }

    def update(self, step: int) -> None:
        """Add the weights after a step."""
        if step >= self._start:
            for model in self._models.values():
                model.update_parameters(self._live)

    def ready(self) -> list[str]:
        """Name the averages that hold anything yet."""
        return [kind for kind, model in self._models.items() if model.n_averaged > 0]

    @contextmanager
    def installed(self, kind: str, batches: Callable[[], Iterable[Tensor]]) -> Iterator[None]:
        """Let the algorithm have the averaged weights inside the context, and its own again after it.

        Parameters
        ----------
        kind : {"sma", "ema"}
        batches : callable
            Gives inputs [B, ...] to take batch-norm statistics from, on the algorithm's device; called if there
            are any to take.
        """
        algorithm = self._algorithm
        norms = moving_norms(algorithm)
        before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
        self._exchange(kind)
        try:
            if norms:
                refresh(algorithm, norms, batches())
            yield
        finally:
            self._exchange(kind)
            for buffer, value in before:
                buffer.copy_(value)

    def _exchange(self, kind: str) -> None:
        # pointers change hands, not numbers: going back is exact and costs nothing
        for own, averaged in zip(self._live, self._models[kind].parameters(), strict=True):
            own.data, averaged.data = averaged.data, own.data

    def state(self) -> dict[str, Any]:
        """What to go on from: the live tensors, by kind."""
        return {
            kind: {"n_averaged": int(model.n_averaged), "weights": [p.detach() for p in model.parameters()]}
            for kind, model in self._models.items()
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for kind, model in self._models.items():
            model.n_averaged.fill_(state[kind]["n_averaged"])
            for parameter, value in zip(model.parameters(), state[kind]["weights"], strict=True):
                parameter.data.copy_(value)


class InOrder:
    """The minibatches of a split in its own order, which take no random number to arrange.

    Parameters
    ----------
    split : Dataset
    batch_size : int
    num_workers : int
        Processes that read it, unless it lies in memory.
    seed : int
        Of the workers' generators, which augment images.
    """

    def __init__(self, split: Any, batch_size: int, num_workers: int, seed: int) -> None:
        self._split, self._batch_size, self._seed = split, batch_size, seed
        self._workers = 0 if in_memory(split) else num_workers

    def __iter__(self) -> Iterator[Any]:
        if self._workers:
            generator = torch.Generator().manual_seed(self._seed)
            yield from DataLoader(self._split, self._batch_size, num_workers=self._workers, generator=generator)
            return
        for start in range(0, len(self._split), self._batch_size):
            yield collate(self._split, range(start, min(start + self._batch_size, len(self._split))))


def held_out(splits: Splits, further: Collection[str], num_workers: int, seed: int) -> dict[str, InOrder]:
    """Give what says how good a candidate is: the ``out`` splits, and those named besides.

    Parameters
    ----------
    splits : Splits
    further : collection of str
        Such as the test environments' ``in`` splits.
    num_workers, seed
        See `InOrder`.

    Returns
    -------
    dict of str to InOrder
        In the order of evaluation.
    """
    return {
        name: InOrder(split, EVAL_BATCH_SIZE, num_workers, seed)
        for name, split in splits.by_name.items()
        if name.endswith("_out") or name in further
    }


def sample(splits: Sequence[Any], batch_size: int, seed: int) -> Iterator[Tensor]:
    """Draw training inputs, a minibatch of every environment at a time, by a generator of their own.

    Parameters
    ----------
    splits : sequence of Dataset
    batch_size : int
        Of each environment.
    seed : int

    Yields
    ------
    Tensor, shape [len(splits) * batch_size, ...]
        At most `REFRESH_BATCHES` of them.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(split), generator=generator).tolist() for split in splits]
    rounds = max(1, min(REFRESH_BATCHES, *(len(order) // batch_size for order in orders)))
    for index in range(rounds):
        chosen = slice(index * batch_size, (index + 1) * batch_size)
        yield torch.cat([collate(split, order[chosen])[0] for split, order in zip(splits, orders)])


def moving_norms(algorithm: nn.Module) -> list[nn.Module]:
    """List the modules whose batch-norm statistics training moves; DomainBed freezes those of its ResNets.

    Parameters
    ----------
    algorithm : nn.Module
        In training mode.
    """
    return [
        module
        for module in algorithm.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.training
        and module.running_mean is not None
    ]


def refresh(algorithm: nn.Module, norms: Sequence[nn.Module], batches: Iterable[Tensor]) -> None:
    """Take batch-norm statistics anew, as ``torch.optim.swa_utils.update_bn``; all else is as it predicts.

    Parameters
    ----------
    algorithm : nn.Module
    norms : sequence of nn.Module
        See `moving_norms`.
    batches : iterable of Tensor, shape [B, ...]
    """
    momenta = [norm.momentum for norm in norms]
    kept = [[buffer.clone() for buffer in norm.buffers()] for norm in norms]
    with untouched(algorithm), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()  # type: ignore[operator]
            norm.momentum = None  # type: ignore[assignment]
            norm.train()
        for x in batches:
            algorithm.predict(x)  # type: ignore[operator]
    for norm, momentum, old in zip(norms, momenta, kept):
        norm.momentum = momentum
        if not int(norm.num_batches_tracked):  # type: ignore[arg-type]
            # predicting does not use it
            for buffer, value in zip(norm.buffers(), old):
                buffer.copy_(value)
