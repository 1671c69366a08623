"""DomainBed's checkpoints: reading them without executing anything, and loading their weights."""

from __future__ import annotations

import contextlib
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from domainbed_plugins.backends import networks
from domainbed_plugins.interface import Testbed
from nacme.system.tensors import CheckpointError as CheckpointError
from nacme.system.tensors import load_tensors


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Nothing in it is executed.

    Parameters
    ----------
    path : path
        A ``model.pkl`` or ``model_step{step}.pkl`` of DomainBed.

    Returns
    -------
    dict
        ``model_dict`` (the algorithm's state), ``model_hparams``, ``args`` and what else DomainBed stored.

    Raises
    ------
    CheckpointError
        If the file is truncated, asks for anything but tensors and numbers, or is no checkpoint of DomainBed.
    """
    try:
        content = load_tensors(path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "it holds more than tensors and numbers"
        raise CheckpointError(
            f"{path} is no checkpoint that can be read safely: {reason}; nothing of it was executed"
        ) from None
    except Exception as error:  # foreign content makes torch raise nearly anything
        known = isinstance(error, (OSError, RuntimeError)) and str(error)
        reason = str(error).partition("\n")[0].partition(". ")[0] if known else "its content is cut off or foreign"
        raise CheckpointError(f"{path} is truncated or no checkpoint: {reason}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model_dict"), Mapping):
        raise CheckpointError(f"{path} is no checkpoint of DomainBed: it has no 'model_dict'")
    return content


def build_algorithm(
    testbed: Testbed,
    name: str,
    input_shape: Sequence[int],
    num_classes: int,
    num_domains: int,
    hparams: Mapping[str, Any],
) -> nn.Module:
    """Build an algorithm whose weights are going to be replaced: pretrained ones are not downloaded.

    Parameters
    ----------
    testbed : Testbed
    name : str
        Of the algorithm.
    input_shape, num_classes, num_domains, hparams
        As its class takes them.

    Returns
    -------
    nn.Module

    Raises
    ------
    CheckpointError
        If it cannot be built, for example because it needs CUDA.
    """
    try:
        # some print while they are built; standard output is for results
        with without_pretrained_weights(), contextlib.redirect_stdout(sys.stderr):
            algorithm: nn.Module = testbed.algorithms.get_algorithm_class(name)(
                input_shape, num_classes, num_domains, hparams
            )
    except KeyError as error:
        raise CheckpointError(
            f"{name} cannot be built: its recorded hparams lack {error}; score with the commit of {testbed.name} "
            "that trained it"
        ) from None
    except Exception as error:  # algorithms of others may raise anything
        raise CheckpointError(f"{name} cannot be built here: {_first_line(error)}") from error
    return algorithm


def load_weights(algorithm: nn.Module, state: Mapping[str, Any], path: str | Path) -> None:
    """Put a checkpoint's state into an algorithm.

    Parameters
    ----------
    algorithm : nn.Module
    state : mapping of str to Tensor
        The checkpoint's ``model_dict``.
    path : path
        Named in errors.

    Raises
    ------
    CheckpointError
        If the state is that of another network.

    Notes
    -----
    Two things that training makes are absent from a new algorithm and allowed for: whole modules (Fish's inner
    network, which predicting does not use), and the content of buffers that are empty at first (GroupDRO's
    weights).
    """
    for name, buffer in algorithm.named_buffers():
        if not buffer.numel() and name in state:
            buffer.resize_(state[name].shape)
    wanted = algorithm.state_dict()
    missing = [key for key in wanted if key not in state]
    children = {key.partition(".")[0] for key in wanted}
    extra = [key for key in state if key not in wanted and key.partition(".")[0] in children]
    reshaped = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if not (missing or extra or reshaped):
        algorithm.load_state_dict({key: state[key] for key in wanted})
        return
    if reshaped:
        key = reshaped[0]
        fault = f"{key} has shape {list(state[key].shape)}, not {list(wanted[key].shape)}"
    else:
        fault = f"it lacks {missing[0]}" if missing else f"it holds {extra[0]}"
    raise CheckpointError(
        f"{path} is of another architecture than {type(algorithm).__name__} with the recorded hparams: {fault}"
    )


@contextlib.contextmanager
def without_pretrained_weights() -> Iterator[None]:
    """Let pretrained networks start from random weights, so that building them downloads and reads none."""
    import torchvision.models

    patched: list[tuple[Any, str, Any]] = []

    def patch(module: Any, name: str, **forced: Any) -> None:
        original: Callable[..., Any] = getattr(module, name)

        def build(*args: Any, **options: Any) -> Any:
            options.pop("pretrained", None)
            return original(*args, **{**options, **forced})

        patched.append((module, name, original))
        setattr(module, name, build)

    try:
        for resnet in ("resnet18", "resnet50"):
            patch(torchvision.models, resnet, weights=None)
        patch(torch.hub, "load", pretrained=False)
        if "timm" in sys.modules:
            patch(sys.modules["timm"], "create_model", pretrained=False)
        with networks.without_weights():
            yield
    finally:
        for module, name, original in patched:
            setattr(module, name, original)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
