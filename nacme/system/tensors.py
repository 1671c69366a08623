"""Reading what `torch.save` wrote without executing anything."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nacme.errors import NacmeError
from nacme.system import files

#: From this version on, ``weights_only`` has no known way round it.
SAFE_TORCH = (2, 10)
#: The variable by which a user vouches for the files that an older torch reads.
TRUST = "NACME_TRUST_FILES"


class CheckpointError(NacmeError):
    """A checkpoint that cannot be read, or that belongs to another network."""


def load_tensors(path: str | Path) -> Any:
    """Read what `torch.save` wrote onto the CPU, if it is made of tensors, numbers, text and containers of them.

    Parameters
    ----------
    path : path

    Raises
    ------
    CheckpointError
        If torch is of a version that can be made to execute what a file holds, this process did not write the
        file, and `TRUST` is not set.
    Exception
        Nearly any other, if the content is foreign.
    """
    with os.fdopen(files.open_regular(path), "rb") as file:
        installed = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
        if installed < SAFE_TORCH and not files.own(file.fileno()) and os.environ.get(TRUST) != "1":
            raise CheckpointError(
                f"{path} is not loaded: torch {torch.__version__} can be made to execute what a file holds "
                "(CVE-2025-32434 below 2.6, CVE-2026-24747 below 2.10); update torch, or, where you trust the "
                f"file, set {TRUST}=1"
            )
        with _allowing_numbers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _allowing_numbers() -> Iterator[None]:
    """Let torch read numpy's scalars, by stand-ins that make plain numbers."""
    # torch 2.4 has no context manager for this
    others = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(_NUMPY_SCALARS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


class _Dtype:
    """Stands in for ``numpy.dtype`` while a scalar is read: numbers only."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[?biufc]\d*", code):
            raise pickle.UnpicklingError(f"a numpy scalar of type {code!r}")
        self.code = code
        self.order: Literal[">", "="] = "="

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.order = ">" if state[1] == ">" else "="


def _scalar(dtype: _Dtype, content: bytes) -> bool | int | float | complex:
    """Stands in for numpy's reconstruction of a scalar, which could also make objects of any kind."""
    number: bool | int | float | complex = np.frombuffer(content, np.dtype(dtype.code).newbyteorder(dtype.order))[
        0
    ].item()
    return number


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for ``_codecs.encode``, by which pickle writes bytes."""
    return text.encode("latin1") if encoding == "latin1" else b""


def _as_named(stand_in: Any, module: str, name: str) -> Any:
    """Make a copy of a stand-in that torch finds under the name that pickles hold."""
    if isinstance(stand_in, type):
        return type(name, (stand_in,), {"__module__": module, "__qualname__": name})

    def function(*args: Any) -> Any:
        return stand_in(*args)

    function.__module__, function.__name__, function.__qualname__ = module, name, name
    return function


#: Random hyper-parameters hold numpy's numbers; numpy 2 moved the function that makes them.
_NUMPY_SCALARS = [
    _as_named(_scalar, "numpy._core.multiarray", "scalar"),
    _as_named(_scalar, "numpy.core.multiarray", "scalar"),
    _as_named(_Dtype, "numpy", "dtype"),
    _as_named(_encode, "_codecs", "encode"),
]
