"""Passing batches through a model whose taps are read, over a loader or one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from nacme.errors import NacmeError
from nacme.taps import Reading, Taps, untouched

#: What labels are called in a batch of names, as Hugging Face's collators and data sets give them.
LABELS = ("labels", "label", "y")


@contextmanager
def observing(
    model: nn.Module,
    layers: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    further: Sequence[str] = (),
    labelled: bool = True,
) -> Iterator[Callable[[Any], tuple[Reading, Tensor]]]:
    """Prepare a model for batches that the caller hands over one by one.

    The model is in evaluation mode with frozen parameters inside the context, and as it was afterwards.

    Parameters
    ----------
    model : nn.Module
        Gives logits from ``predict(x)`` where it has that method, else from ``forward``.
    layers, further : sequence of str
        See `nacme.taps.Taps`.
    device : torch.device or str, optional
        Where batches are moved to. None: where the model is.
    labelled : bool
        Whether batches must have labels. False: they may lack them, or have anything in their place; labels are
        then whatever there is one of for each sample, else an empty tensor.

    Yields
    ------
    callable
        Takes ``(x, y, ...)``, ``{"x": ..., "y": ...}`` or inputs by name with ``labels`` among them; ``x`` may be
        several tensors in a tuple or by name. It gives a `Reading` and labels [B], on the device. It raises
        NacmeError for something else than pairs and for labels that are no class's number, and LayerError as
        `nacme.taps.Taps` does.
    """
    with untouched(model), Taps(model, layers, further) as taps:
        place = _placing(model, device, labelled)

        def read(batch: Any) -> tuple[Reading, Tensor]:
            x, labels = place(batch)
            reading = taps.read(x)
            if labelled:
                check_labels(_pair(batch)[1], reading.logits.shape[1])
            return reading, labels

        yield read


def observe(
    model: nn.Module,
    loader: Iterable[Any],
    layers: Sequence[str] | None = None,
    device: torch.device | str | None = None,
) -> Iterator[tuple[Reading, Tensor]]:
    """Pass over a loader once and read the taps of every batch; see `observing`.

    Parameters
    ----------
    model, layers, device
        See `observing`.
    loader : iterable
        Of what `observing` takes.

    Yields
    ------
    reading : Reading
    labels : Tensor, shape [B]

    Raises
    ------
    LayerError
        See `nacme.taps.Taps`.
    NacmeError
        If the loader gives no samples, or something else than pairs.
    """
    with observing(model, layers, device) as read:
        yield from map(read, not_empty(loader))


def batches(
    model: nn.Module, loader: Iterable[Any], device: torch.device | str | None = None
) -> Iterator[tuple[Any, Tensor]]:
    """Bring a loader's batches to where the model is, inputs in its floating point type.

    Parameters
    ----------
    model, loader, device
        See `observe`.

    Yields
    ------
    x : Tensor, shape [B, ...], or several in a tuple or by name
    labels : Tensor, shape [B]

    Raises
    ------
    NacmeError
        If the loader gives no samples, or something else than pairs.
    """
    yield from map(_placing(model, device), not_empty(loader))


def not_empty(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield a loader's batches; NacmeError if there are none."""
    given: object = loader
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        raise NacmeError(
            "this is a data set, not a loader of batches; give torch.utils.data.DataLoader(dataset, 64)"
        )
    try:
        len(loader)  # type: ignore[arg-type]
    except ValueError as error:  # as DomainBed's training loader answers
        raise NacmeError(
            f"the loader never ends ({error}); measure on one that passes over its data once"
        ) from None
    except (TypeError, NotImplementedError):  # it does not say
        pass
    empty = True
    for batch in loader:
        empty = False
        yield batch
    if empty:
        raise NacmeError("the loader gave no samples; check the split and its batch size")


def _placing(
    model: nn.Module, device: torch.device | str | None = None, labelled: bool = True
) -> Callable[[Any], tuple[Any, Tensor]]:
    """Make the function that brings a batch to where the model is, inputs in its floating point type."""
    tensors = [t for t in itertools.chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    to = torch.device(device) if device is not None else (tensors[0].device if tensors else torch.device("cpu"))

    def placed(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {key: placed(value) for key, value in x.items()}
        if isinstance(x, tuple | list):
            return tuple(map(placed, x))
        if not isinstance(x, Tensor):
            return x
        x = x.to(to, non_blocking=True)
        return x.to(tensors[0].dtype) if x.is_floating_point() and tensors else x

    def place(batch: Any) -> tuple[Any, Tensor]:
        x, y = _pair(batch) if labelled else _maybe_pair(batch)
        x, count, labels = placed(x), _count(x), torch.as_tensor(() if y is None else y)
        if not labelled and labels.numel() != count:
            return x, labels.new_empty(0)
        if labels.dim() == 0:
            raise NacmeError("the labels of a batch are one number: give a loader of batches, not of samples")
        if labels.numel() != count:
            raise NacmeError(
                f"labels of shape {list(labels.shape)} for {count} inputs: give one class number a sample, for "
                "one-hot labels y.argmax(dim=1)"
            )
        return x, labels.to(to, non_blocking=True).reshape(count)

    return place


def _count(x: Any) -> int:
    """Samples in a batch's inputs: the length of the first tensor among them."""
    if isinstance(x, Tensor):
        return len(x) if x.dim() else 1
    values = x.values() if isinstance(x, Mapping) else x
    return next(_count(value) for value in values if isinstance(value, Tensor))


def check_labels(labels: Any, num_classes: int) -> None:
    """Refuse labels that are no class's number.

    Parameters
    ----------
    labels : tensor or array, shape [B]
        Where the loader gave them: on the CPU, looking at them keeps no device waiting.
    num_classes : int
        ``C``; for a single logit, 1: the classes are 0 and 1.

    Raises
    ------
    NacmeError
        If one is not a whole number, or none of ``0 .. C - 1``.
    """
    values = torch.as_tensor(labels)
    classes = max(num_classes, 2)
    wrong = (values < 0) | (values >= classes)
    if values.is_floating_point():
        wrong |= values != values.floor()
    if bool(wrong.any()):
        raise NacmeError(
            f"label {values[wrong].flatten()[0].item():.6g} is no class of a model with {num_classes} logits: "
            f"labels are whole numbers from 0 to {classes - 1}; leave out samples without one"
        )


def _maybe_pair(batch: Any) -> tuple[Any, Any]:
    """Inputs, and what stands in the place of labels if it could be some."""
    if isinstance(batch, Mapping) and (named := _named(batch)):
        return named
    if isinstance(batch, Tensor):
        batch = (batch,)
    if isinstance(batch, tuple | list) and batch and _is_input(batch[0]):
        return batch[0], batch[1] if len(batch) > 1 and isinstance(batch[1], Tensor) else ()
    raise NacmeError(f"the loader must give inputs as tensors, not {type(batch).__name__}")


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping) and (named := _named(batch)) and named[1] is not None:
        return named[0], named[1]
    if isinstance(batch, tuple | list) and len(batch) >= 2 and _is_input(batch[0]):
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        keys = ", ".join(repr(str(key)) for key in batch)
        raise NacmeError(f"a batch has the keys {keys} and no labels; give them under one of {', '.join(LABELS)}")
    hint = "; of several loaders give each by itself" if isinstance(batch, str) else ""
    raise NacmeError(f"the loader must give (inputs, labels) pairs of tensors, not {type(batch).__name__}{hint}")


def _named(batch: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """Inputs and labels of a batch of names: ``{"x", "y"}``, else labels under a usual name and the rest."""
    if "x" in batch:
        return batch["x"], batch.get("y")
    label = next((name for name in LABELS if name in batch), None)
    x = {name: value for name, value in batch.items() if name != label}
    return (x, batch.get(label) if label else None) if _is_input(x) else None


def _is_input(x: Any) -> bool:
    """Whether a model can be given it: a tensor, several in a row, or by name."""
    values = list(x.values()) if isinstance(x, Mapping) else x
    return isinstance(x, Tensor) or (
        isinstance(values, tuple | list) and any(isinstance(value, Tensor) for value in values)
    )
