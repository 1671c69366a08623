"""The whole state of an algorithm as plain data: parameters, optimizers, counters, moving averages.

DomainBed's algorithms keep their state in parameters and buffers, in optimizers and schedulers, and in attributes
of all kinds: numbers, lists of moving averages, the state dict of an optimizer that is made anew in each step. The
state is therefore gathered by walking all attributes. Nothing is pickled: what is made of tensors, numbers and
text is written down as such, and put back into an algorithm that its own constructor has built.
"""

from __future__ import annotations

import types
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

_PLAIN = (type(None), bool, int, float, str)
_CONTAINERS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
#: What the constructor builds and no step changes.
_FIXED = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    Dataset,
    DataLoader,
)
#: A module's own machinery: hooks and the like; its parameters, buffers and submodules are walked by these names.
_MACHINERY = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}


def capture(root: object) -> Any:
    """Write an object's state down.

    Parameters
    ----------
    root : object
        An algorithm.

    Returns
    -------
    tree of dict, list, Tensor, number and str
        Tensors are the live ones, not copies: save it before the next step.
    """
    return _Capture().node(root)


def restore(root: object, tree: Any, device: torch.device | str) -> list[str]:
    """Put a state back into an object of the same class.

    Parameters
    ----------
    root : object
    tree : tree
        From `capture`.
    device : torch.device or str
        For tensors that `root` has no counterpart of.

    Returns
    -------
    list of str
        Attributes of the state that `root` has no object for, such as a network that only the first step makes.
    """
    work = _Restore(torch.device(device))
    work.node(root, tree, type(root).__name__)
    return work.missing


def rebuild(tree: Any) -> Any:
    """Make a value from its state: numbers, text, tensors, arrays and containers of them, on the CPU."""
    return _Restore(torch.device("cpu")).node(_ABSENT, tree, "")


class _Capture:
    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.alive: list[object] = []  # so that no id is used twice

    def node(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return value
        if id(value) in self.seen:
            return {"kind": "again", "id": self.seen[id(value)]}
        self.seen[id(value)] = number = len(self.alive)
        self.alive.append(value)
        return {**self._describe(value), "id": number}

    def _describe(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Tensor):
            # gradients too: some algorithms add to what the step before left
            grad = value.grad.detach() if value.is_leaf and value.grad is not None else None
            parameter, trained = isinstance(value, nn.Parameter), value.requires_grad and value.is_leaf
            content = value.detach()
            return {"kind": "tensor", "value": content, "grad": grad, "parameter": parameter, "trained": trained}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return {"kind": "array", "value": torch.from_numpy(value.copy()), "dtype": value.dtype.str}
        if isinstance(value, np.generic) and value.dtype.kind in "biuf":
            return {"kind": "scalar", "value": value.item(), "dtype": value.dtype.str}
        if isinstance(value, torch.Generator):
            return {"kind": "generator", "class": _name(value), "state": value.get_state()}
        if isinstance(value, (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)):
            return {"kind": "stepper", "class": _name(value), "state": _Capture().node(value.state_dict())}
        if isinstance(value, dict):
            return {"kind": "dict", "items": [[self.node(key), self.node(item)] for key, item in value.items()]}
        for kind, container in _CONTAINERS.items():
            if isinstance(value, container):
                maxlen = value.maxlen if isinstance(value, deque) else None
                return {"kind": kind, "items": [self.node(item) for item in value], "maxlen": maxlen}
        if isinstance(value, _FIXED) or not hasattr(value, "__dict__"):
            return {"kind": "fixed"}
        skipped = _MACHINERY if isinstance(value, nn.Module) else frozenset()
        items = [[key, self.node(item)] for key, item in vars(value).items() if key not in skipped]
        return {"kind": "object", "class": _name(value), "items": items}


class _Absent:
    """Stands where an object has no counterpart."""


_ABSENT = _Absent()


class _Restore:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.missing: list[str] = []
        self.made: dict[int, Any] = {}

    def node(self, current: Any, tree: Any, path: str) -> Any:
        """Give what belongs where `current` is: itself, brought to the state, or something new."""
        if not isinstance(tree, dict):
            return tree
        if tree["kind"] == "again":
            return self.made.get(tree["id"], current)
        result = self.made[tree["id"]] = self._build(current, tree, path)
        return result

    def _build(self, current: Any, tree: dict[str, Any], path: str) -> Any:
        kind = tree["kind"]
        if kind == "tensor":
            return self._tensor(current, tree)
        if kind == "array":
            return tree["value"].numpy().astype(tree["dtype"])
        if kind == "scalar":
            return np.dtype(tree["dtype"]).type(tree["value"])
        if kind == "dict":
            return self._dict(current, tree, path)
        if kind in _CONTAINERS:
            return self._container(current, tree, path)
        if current is _ABSENT or (kind != "fixed" and _name(current) != tree["class"]):
            self.missing.append(path)
        elif kind == "generator":
            current.set_state(tree["state"])
        elif kind == "stepper":
            current.load_state_dict(_Restore(self.device).node(_ABSENT, tree["state"], path))
        elif kind == "object":
            self.made[tree["id"]] = current  # its own attributes may lead back to it
            self._fill(vars(current), tree["items"], path)
        return current

    def _tensor(self, current: Any, tree: dict[str, Any]) -> Tensor:
        value: Tensor = tree["value"]
        grad: Tensor | None = tree["grad"]
        tensor: Tensor
        if isinstance(current, Tensor) and current.shape == value.shape and current.dtype == value.dtype:
            tensor = current
            with torch.no_grad():
                tensor.copy_(value)
        else:
            # a copy: the state is read again after a rehearsal, which changes tensors in place
            tensor = value.to(current.device if isinstance(current, Tensor) else self.device, copy=True)
            tensor = nn.Parameter(tensor, tree["trained"]) if tree["parameter"] else tensor
        if tensor.is_leaf:
            tensor.requires_grad_(tree["trained"])
            tensor.grad = None if grad is None else grad.to(tensor.device, copy=True)
        return tensor

    def _fill(self, target: dict[Any, Any], items: list[list[Any]], path: str) -> None:
        for key_tree, item in items:
            key = self.node(_ABSENT, key_tree, path)
            value = self.node(target.get(key, _ABSENT), item, f"{path}.{key}")
            if value is not _ABSENT:
                target[key] = value

    def _dict(self, current: Any, tree: dict[str, Any], path: str) -> dict[Any, Any]:
        result: dict[Any, Any] = current if isinstance(current, dict) else {}
        self.made[tree["id"]] = result
        kept = {self.node(_ABSENT, key, path) for key, _ in tree["items"]}
        for key in [key for key in result if key not in kept]:
            del result[key]
        self._fill(result, tree["items"], path)
        return result

    def _container(self, current: Any, tree: dict[str, Any], path: str) -> Any:
        kind = _CONTAINERS[tree["kind"]]
        old = list(current) if isinstance(current, (list, tuple, deque)) else []
        old += [_ABSENT] * (len(tree["items"]) - len(old))
        items = [self.node(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(old, tree["items"]))]
        if isinstance(current, (list, deque)) and isinstance(current, kind):
            current.clear()
            current.extend(items)
            return current
        if isinstance(current, tuple) and hasattr(current, "_fields"):
            return type(current)(*items)
        return deque(items, maxlen=tree["maxlen"]) if kind is deque else kind(items)


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
