"""Tapping a network: what its layers put out for a batch, and the gradient of ``KL(u || p)`` by it.

Where only a linear head lies above the tapped layer the gradient is known in closed form and no graph is built.
Otherwise a graph is built from the first tapped layer on, and one backward pass gives all gradients.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nacme.errors import LayerError, nearest
from nacme.prediction import are_probabilities, predict_logits
from nacme.states import head_gradients, kl_gradients, pool_positions

INPUT = ":input"


@dataclass(frozen=True)
class Reading:
    """What the taps read from one batch.

    Attributes
    ----------
    logits : Tensor, shape [B, C]
    activations : dict of str to Tensor, shape [B, N]
        By layer name, summed over positions.
    gradients : dict of str to Tensor, shape [B, N]
        ``dKL(u || p) / dz`` by layer name, summed over positions.
    positions : dict of str to int
        How many positions were summed, by layer name.
    """

    logits: Tensor
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]
    positions: dict[str, int] = field(default_factory=dict)

    def only(self, layers: Collection[str]) -> Reading:
        """Leave out all other layers."""
        activations, gradients = (
            {name: values[name] for name in values if name in layers}
            for values in (self.activations, self.gradients)
        )
        return Reading(self.logits, activations, gradients, self.positions)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode with frozen parameters, and back as it was afterwards.

    Parameters
    ----------
    model : nn.Module
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        # set one by one: an algorithm's own train() may take no argument, or do more than set modes
        for module, training in modes:
            module.training = training


class LinearCall(NamedTuple):
    """What a linear layer read and gave in one prediction, and the versions of both just then."""

    module: nn.Linear
    features: Tensor
    output: Tensor
    versions: tuple[int, int]


class _AnotherWayError(Exception):
    """The logits do not come from the head as they did for the first batch."""


class Taps:
    """Hooks on a model that read layers while it predicts. Use as a context manager: leaving removes them.

    Parameters
    ----------
    model : nn.Module
        Gives logits from ``predict(x)`` where it has that method, else from ``forward``. In evaluation mode and
        with frozen parameters (see `untouched`).
    layers : sequence of str, optional
        Dotted module paths; a path with ``:input`` behind it is what goes into that module. None: the input of
        the linear layer that produces the logits.
    further : sequence of str
        Layers to tap beside these.

    Raises
    ------
    LayerError
        If the model has no such layer, or a layer gives no tensor of one row per sample.

    Notes
    -----
    A module that runs several times in one prediction is read at its last run. That the closed form holds is
    proved for every batch, from the tensors' version counters: what the head read and gave, and the layer's
    output, were not changed in place. A batch for which it does not hold is predicted again, by the graph.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] | None = None, further: Sequence[str] = ()) -> None:
        self.model = model
        self._named = list(dict.fromkeys([*(layers or ()), *further]))
        # what torch.compile has made runs no hooks; the module it was made from gives the same
        plain = getattr(model, "_orig_mod", model)
        self._predict = getattr(plain, "predict", plain)
        self._find_head = layers is None
        self._modules = {name: _module(model, name) for name in self._named}
        self._read: dict[str, Tensor] = {}
        self._passed: dict[str, Tensor] = {}
        self._linear_calls: list[LinearCall] = []
        self._handles: list[RemovableHandle] = []
        self._settled = False
        self._by_graph = self._named
        self._head: nn.Linear | None = None
        self._shapes: dict[str, torch.Size] = {}
        # what a layer gave, and its version then, of those that the closed form is used for
        self._watched: list[str] = []
        self._seen: dict[str, tuple[Tensor, int]] = {}

    def __enter__(self) -> Taps:
        for name, module in self._modules.items():
            self._handles.append(self._tap(name, module))
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                self._handles.append(module.register_forward_hook(self._note_linear))
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    @property
    def names(self) -> list[str]:
        """The layers that are read; what feeds the logits is known once a batch has been read."""
        return [*self._shapes, *self._by_graph]

    def read(self, x: Any) -> Reading:
        """Predict a batch and read the taps.

        Parameters
        ----------
        x : Tensor, shape [B, ...], or several in a tuple or by name
            The model's input.

        Returns
        -------
        Reading

        Raises
        ------
        LayerError
            If no linear layer produces the logits and no layer was named, or a layer does not feed the logits.
        """
        try:
            return self._read_batch(x)
        except _AnotherWayError:
            # the closed form holds no longer, so this batch and all after it go by the graph
            self._reopen()
            return self._read_batch(x)

    def _read_batch(self, x: Any) -> Reading:
        closed = self._settled and not self._by_graph
        try:
            # no inference mode: its tensors do not tell whether they were changed in place
            with torch.inference_mode(False), torch.no_grad() if closed else torch.enable_grad():
                logits = predict_logits(self._predict, x)
                if not self._settled:
                    self._settle(logits)
                above, below = self._read_head(logits), self._read_by_autograd(logits)
                return Reading(
                    logits.detach(),
                    {**above.activations, **below.activations},
                    {**above.gradients, **below.gradients},
                    {**above.positions, **below.positions},
                )
        finally:
            self._linear_calls.clear()
            self._read.clear()
            self._passed.clear()
            self._seen.clear()

    def _settle(self, logits: Tensor) -> None:
        """Learn from the first batch where the head is and whether the closed form holds for every tap."""
        self._settled = True
        if are_probabilities(logits):
            raise LayerError(
                "the model gives probabilities, for each row sums to 1; give it without its softmax, so that it "
                "gives logits"
            )
        missing = [name for name in self._named if name not in self._read]
        if missing:
            raise LayerError(f"layer {missing[0]!r} does not run when the model predicts; tap one that does")
        for name, value in self._read.items():
            if value.shape[0] != logits.shape[0]:
                raise LayerError(
                    f"layer {name!r} gives {list(value.shape)} for a batch of {logits.shape[0]}: its first "
                    "dimension must be the batch"
                )
        call = self._head_call(logits)
        if self._find_head:
            if call is None:
                raise LayerError(
                    "no linear layer of the model produces the logits directly; name layers to tap, for example "
                    f"what feeds the logits: layers=[{self._likely_input(logits)!r}]"
                )
            self._head = call[0]
            self._shapes = {_name_of(self.model, call[0]) + INPUT: call[1].shape[1:]}
        if call is not None and all(_is_view(call[1], self._passed[name]) for name in self._named):
            self._head = call[0]
            self._shapes |= {name: self._passed[name].shape[1:] for name in self._named}
            self._by_graph = []
            self._remove()
            self._handles = [self._head.register_forward_hook(self._note_linear)]
            self._handles += [self._watch(name, self._modules[name]) for name in self._named]
            self._seen = {name: (self._passed[name], 0) for name in self._named}

    def _reopen(self) -> None:
        """Take back what the first batch settled, for the layers that were named."""
        if self._find_head:
            raise LayerError(
                "the model produced its logits in another way than for the first batch; name layers to tap, for "
                f"example what feeds the logits: layers=[{_name_of(self.model, self._head) + INPUT!r}]"
            )
        self._remove()
        self._head, self._shapes, self._by_graph = None, {}, self._named
        self.__enter__()

    def _head_call(self, logits: Tensor) -> tuple[nn.Linear, Tensor] | None:
        """Find the linear layer whose output is the logits, and what it read, both unchanged since."""
        for module, features, output, versions in reversed(self._linear_calls):
            if output is logits or (output.shape == logits.shape and output.data_ptr() == logits.data_ptr()):
                if (_version(features), _version(logits)) != versions:
                    return None
                # a layer that only inherits from nn.Linear, or that has other hooks, may compute something else
                if self._head is not module or not _is_plain(module):
                    linear = nn.functional.linear(features, module.weight, module.bias)
                    if not torch.allclose(linear, logits, rtol=1e-3, atol=1e-3, equal_nan=True):
                        return None
                return module, features
        return None

    def _likely_input(self, logits: Tensor) -> str:
        """Name what most likely feeds the logits: the input of the last layer that could produce them."""
        calls = [call.module for call in self._linear_calls if call.output.shape == logits.shape]
        weighted = [m for m in self.model.modules() if any(p.dim() > 1 for p in m.parameters(recurse=False))]
        last = [*weighted, *calls][-1:] or [*self.model.modules()][-1:]
        return _name_of(self.model, last[0]) + INPUT

    def _read_head(self, logits: Tensor) -> Reading:
        if self._head is None:
            return Reading(logits, {}, {})
        call = self._head_call(logits)
        if call is None or any(not _is_view(call[1], *self._seen.get(name, ())) for name in self._watched):
            raise _AnotherWayError
        logits, features = logits.detach(), call[1].detach()
        gradient = head_gradients(logits, call[0].weight.detach())
        return Reading(
            logits,
            {name: pool_positions(features.reshape(-1, *shape)) for name, shape in self._shapes.items()},
            {name: pool_positions(gradient.reshape(-1, *shape)) for name, shape in self._shapes.items()},
            {name: _positions(shape) for name, shape in self._shapes.items()},
        )

    def _read_by_autograd(self, logits: Tensor) -> Reading:
        values = [self._read[name] for name in self._by_graph]
        if not values:
            return Reading(logits, {}, {})
        try:
            gradients = kl_gradients(logits, values)
        except LayerError as error:
            raise LayerError(f"layers {', '.join(map(repr, self._by_graph))}: {error}") from None
        return Reading(
            logits.detach(),
            {name: pool_positions(value.detach()) for name, value in zip(self._by_graph, values)},
            {name: pool_positions(gradient) for name, gradient in zip(self._by_graph, gradients)},
            {name: _positions(value.shape[1:]) for name, value in zip(self._by_graph, values)},
        )

    def _tap(self, name: str, module: nn.Module) -> RemovableHandle:
        def keep(value: Any) -> Tensor:
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
                found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise LayerError(f"layer {name!r} gives {found}; tap one that gives a tensor [B, N, ...]")
            self._read[name] = value if value.requires_grad else value.detach().requires_grad_()
            # the network goes on with a copy, so that an in-place operation above leaves the reading alone
            self._passed[name] = self._read[name].clone()
            return self._passed[name]

        if name.endswith(INPUT):
            return module.register_forward_pre_hook(lambda _, inputs: (keep(inputs[0]), *inputs[1:]))
        return module.register_forward_hook(lambda _, __, output: keep(output))

    def _watch(self, name: str, module: nn.Module) -> RemovableHandle:
        """Note what a layer gives without touching it."""
        self._watched.append(name)

        def note(value: Any) -> None:
            if isinstance(value, Tensor):
                self._seen[name] = (value, _version(value))

        if name.endswith(INPUT):
            return module.register_forward_pre_hook(lambda _, inputs: note(inputs[0]))
        return module.register_forward_hook(lambda _, __, output: note(output))

    def _note_linear(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        assert isinstance(module, nn.Linear)
        if isinstance(output, Tensor) and output.dim() == 2:
            versions = (_version(inputs[0]), _version(output))
            self._linear_calls.append(LinearCall(module, inputs[0], output, versions))

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._watched = [], []


def _positions(shape: torch.Size) -> int:
    """Positions of a layer's output for one sample: [N], tokens [T, N] or a map [N, H, W, ...]."""
    return shape[0] if len(shape) == 2 else math.prod(shape[1:])


def _is_view(features: Tensor, tapped: Tensor | None = None, version: int = 0) -> bool:
    """Whether the head reads just the tapped values, in their order and unchanged since they had that version."""
    return (
        tapped is not None
        and features.data_ptr() == tapped.data_ptr()
        and features.numel() == tapped.numel()
        and features.is_contiguous()
        and tapped.is_contiguous()
        and _version(tapped) == version
    )


def _version(values: Tensor) -> int:
    """How often a tensor was changed in place; a tensor made in inference mode does not tell."""
    return 0 if values.is_inference() else values._version


def _is_plain(module: nn.Linear) -> bool:
    """Whether a linear layer computes what its class says: no subclass, no hook but the one that reads it."""
    return type(module) is nn.Linear and "forward" not in vars(module) and len(module._forward_hooks) == 1


def _module(model: nn.Module, name: str) -> nn.Module:
    path = name.removesuffix(INPUT)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if path not in modules or not name:
        raise LayerError(f"the model has no layer {path!r}; {nearest(path, filter(None, modules))}")
    return modules[path]


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str:
    names: list[str] = [name for name, module in model.named_modules() if module is wanted]
    return names[0]
