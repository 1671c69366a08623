"""Sweep specifications in YAML: reading them, with one clear line for every mistake."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from domainbed_plugins.backends.arguments import NETWORK_FLAGS, parse_hparams, with_network
from domainbed_plugins.recording.flags import alpha_value, fill_value, make_grid, worker_count
from domainbed_plugins.recording.options import read_layers
from domainbed_plugins.runs.keep import check_keep
from domainbed_plugins.sweep.jobs import COMBINATIONS, Resources, SweepSpec
from domainbed_plugins.train import average_from
from nacme.criteria.registry import get_criterion
from nacme.errors import ConfigError, NacmeError, nearest
from nacme.settings import SPLITS, CoverageSettings
from nacme.system import files
from nacme.system.text import short

Reader = Callable[[Any], Any]
#: Where the shipped specifications are: beside the packages in a checkout, inside one when installed.
_PACKAGE = Path(__file__).parents[1]
#: Bounds of a specification's size, far beyond any that is meant.
MOST_VALUES, MOST_NESTED, MOST_SEEDS, LARGEST = 100_000, 50, 100_000, 2.0**63
SHIPPED = (_PACKAGE / "sweeps", _PACKAGE.parent / "sweeps")


def load_spec(path: str | Path) -> SweepSpec:
    """Read a sweep specification.

    Parameters
    ----------
    path : path or str
        A YAML file, or the name of a shipped one such as ``"demo"``.

    Returns
    -------
    SweepSpec

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key or value in it is wrong.
    """
    found = find_spec(path)
    try:
        content = yaml.safe_load(files.read_bytes(found).decode())
    except RecursionError:
        raise ConfigError(f"{found}: not a specification: it is nested too deeply") from None
    except OSError as error:
        raise ConfigError(f"{found} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, a number of 5,000 digits
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{found}{place}: not YAML ({getattr(error, 'problem', error)})") from error
    spec = parse_spec(content, str(found))
    if not spec.criteria_module:  # which registers more, when the sweep runs
        try:
            check_keep(spec.keep)
            for criterion in spec.criteria or ():
                get_criterion(criterion)
        except NacmeError as error:
            raise ConfigError(f"{found}: {error}") from error
    beside = found.parent / (spec.criteria_module or "")
    return replace(spec, criteria_module=str(beside.resolve())) if beside.is_file() else spec


def find_spec(path: str | Path) -> Path:
    """Find a specification: a file, or a shipped one by its name.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    if os.path.isfile(path):
        return Path(path)
    names = {file.stem: file for folder in SHIPPED for file in sorted(folder.glob("*.yaml"))}
    if str(path) in names:
        return names[str(path)]
    raise ConfigError(f"{path} is no file and no shipped specification; {nearest(str(path), names)}")


def parse_spec(content: Any, name: str = "the specification") -> SweepSpec:
    """Check a specification's content.

    Parameters
    ----------
    content : Any
        What YAML gave.
    name : str
        For messages.

    Returns
    -------
    SweepSpec

    Raises
    ------
    ConfigError
        Naming the file, the key, what it should be and what it is.
    """
    check_plain(content, name)
    values = _read(content, _TOP, name, "")
    for key in ("datasets", "algorithms"):
        if not values.get(key):
            raise ConfigError(f"{name}: {key} is missing; write for example {key}: [{_EXAMPLES[key]}]")
    # hyper-parameters with keys of their own
    network = {key: values.pop(key, None) for key in NETWORK_FLAGS}
    values["hparams"] = parse_hparams(with_network(json.dumps(values.get("hparams", {})), network))
    nac = values.pop("nac", {})
    grid = nac.pop("grid", {})
    try:
        settings = _settings(nac)
        split = nac.get("split", "out")
        variants = make_grid(grid, settings, split)
        layers = read_layers(nac.get("layers"))
    except ConfigError as error:
        raise ConfigError(f"{name}: nac: {error}") from error
    values["resources"] = Resources(**values.get("resources", {}))
    return SweepSpec(**values, settings=settings, grid=variants, layers=layers, split=split)


def _settings(nac: Mapping[str, Any]) -> CoverageSettings:
    given = {key: nac[key] for key in ("alpha", "bins", "fill") if key in nac}
    return CoverageSettings(**given, correct_only=not nac.get("all_samples", False))


def _read(content: Any, readers: Mapping[str, Reader], name: str, prefix: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError(
            f"{name}: {prefix.rstrip('.') or 'the file'} must be keys and values, not {short(content)}"
        )
    values = {}
    for key, value in content.items():
        if key not in readers:
            raise ConfigError(f"{name}: unknown key '{prefix}{key}'; {nearest(str(key), readers)}")
        nested = _NESTED.get(f"{prefix}{key}")
        if nested is not None:
            values[key] = _read(value, nested, name, f"{prefix}{key}.")
            continue
        try:
            values[key] = readers[key](value)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{name}: {prefix}{key} must be {error}, not {short(value)}") from None
    return values


def check_plain(content: Any, name: str) -> None:
    """Refuse what no specification needs: circles, millions of values, dates, bytes, numbers without bounds.

    Raises
    ------
    ConfigError
    """
    sizes: dict[int, int] = {}

    def size(value: Any, place: str, above: tuple[int, ...]) -> int:
        if isinstance(value, (dict, list)):
            if id(value) in above or len(above) > MOST_NESTED:
                raise ConfigError(f"{name}: {place or 'the file'} is nested too deeply, or within itself")
            if id(value) not in sizes:
                items = value.items() if isinstance(value, dict) else enumerate(value)
                inside = (*above, id(value))
                sizes[id(value)] = 1 + sum(
                    size(item, f"{place}.{short(key)}".lstrip("."), inside) for key, item in items
                )
            if sizes[id(value)] > MOST_VALUES:
                raise ConfigError(f"{name}: {place or 'the file'} holds more than {MOST_VALUES:,} values")
            return sizes[id(value)]
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise ConfigError(f"{name}: {place} is a {type(value).__name__}; put it in quotes, or write a number")
        if isinstance(value, (int, float)) and not -LARGEST < value < LARGEST:
            raise ConfigError(f"{name}: {place} must be a number within 64 bits, not {short(value)}")
        return 1

    size(content, "", ())


def _whole(low: int) -> Reader:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"a whole number from {low}")
        return value

    return read


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a name")
    return value


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ValueError("a list of names")
    if len(set(value)) < len(value):
        raise ValueError("a list of different names")
    return value


def _layers(value: Any) -> list[str]:
    if isinstance(value, str) and value:
        return [value]
    try:
        return _names(value)
    except ValueError:
        raise ValueError("'authors', 'penultimate' or a list of names") from None


def _seeds(value: Any) -> list[int]:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        if value > MOST_SEEDS:
            raise ValueError(f"at most {MOST_SEEDS:,} seeds")
        return list(range(value))
    whole = isinstance(value, list) and value and all(type(item) is int and item >= 0 for item in value)
    if not whole or len(set(value)) < len(value):
        raise ValueError("how many seeds, or a list of different ones from 0")
    return list(value)


def _test_envs(value: Any) -> str | list[list[int]]:
    if value in COMBINATIONS:
        return str(value)
    known = f"{', '.join(map(repr, COMBINATIONS))} or a list such as [[0], [1, 2]]"
    if not isinstance(value, list) or not value:
        raise ValueError(known)
    combinations = [item if isinstance(item, list) else [item] for item in value]
    for envs in combinations:
        if not envs or not all(type(env) is int and env >= 0 for env in envs) or len(set(envs)) < len(envs):
            raise ValueError(known)
    return combinations


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("hyper-parameters such as {lr: 0.001}")
    return value


def _choice(*allowed: str) -> Reader:
    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError(" or ".join(repr(choice) for choice in allowed))
        return str(value)

    return read


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("a number")
    return value


def _alpha(value: Any) -> float | str:
    return alpha_value(value) if value == "auto" else float(_number(value))


def _fill(value: Any) -> int | float:
    return fill_value(str(_number(value)))


def _each(read: Reader) -> Reader:
    def read_all(value: Any) -> list[Any]:
        return [read(item) for item in (value if isinstance(value, list) else [value])]

    return read_all


def _workers(value: Any) -> int | str:
    if value == "auto":
        return worker_count(value)
    try:
        return int(_whole(0)(value))
    except ValueError:
        raise ValueError("a whole number from 0, or 'auto'") from None


def _keep(value: Any) -> list[str]:
    return ["all"] if value == "all" else _names(value)


def _averages(value: Any) -> list[str]:
    names = _names(value)
    if not {*names} <= {"sma", "ema"}:
        raise ValueError("a list of sma and ema")
    return names


def _average_from(value: Any) -> int | float:
    return average_from("eoa" if value == "eoa" else str(_number(value)))


def _amount(value: Any) -> str:
    """Slurm's own notation; YAML turns 1:30:00 into a number of seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("Slurm's notation in quotes, such as '24:00:00' or '16G'")
    return _token(str(value))


def _token(value: Any) -> str:
    """One word: it becomes a line of a script's header, where a newline would begin a command."""
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]{1,200}", value):
        raise ValueError("one word of printable characters")
    return value


def _time(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError("Slurm's notation in quotes, such as '24:00:00' (YAML reads 24:00:00 as a number)")
    return _amount(value)


_EXAMPLES = {"datasets": "RotatedMNIST", "algorithms": "ERM, CORAL"}
_GRID: dict[str, Reader] = {
    "alpha": _each(_alpha),
    "bins": _each(_whole(2)),
    "fill": _each(_fill),
    "layer": _each(_text),
    "split": _each(_choice(*SPLITS)),
}
_NAC: dict[str, Reader] = {
    "alpha": _alpha,
    "bins": _whole(2),
    "fill": _fill,
    "layers": _layers,
    "split": _choice("out", "in"),
    "all_samples": _flag,
    "grid": dict,
}
_RESOURCES: dict[str, Reader] = {
    "partition": _token,
    "account": _token,
    "time": _time,
    "gpus": _whole(0),
    "cpus": _whole(1),
    "mem": _amount,
    "parallel": _whole(1),
}
_TOP: dict[str, Reader] = {
    "datasets": _names,
    "algorithms": _names,
    "test_envs": _test_envs,
    "hparams_seeds": _seeds,
    "trial_seeds": _seeds,
    "steps": _whole(1),
    "checkpoint_freq": _whole(1),
    "hparams": _mapping,
    "featurizer": _text,
    "featurizer_weights": _text,
    "head_init": _choice("stock", "shared", "linear_probe"),
    "channels_last": _flag,
    "nac": dict,
    "criteria": _names,
    "criteria_module": _text,
    "craft_samples": _whole(1),
    "target_unlabeled": _flag,
    "eval_splits": _choice("all", "fast"),
    "n_workers": _workers,
    "keep": _keep,
    "average": _averages,
    "average_from": _average_from,
    "average_decay": lambda value: float(_number(value)),
    "resources": dict,
}
_NESTED = {"nac": _NAC, "nac.grid": _GRID, "resources": _RESOURCES}
assert {field.name for field in fields(Resources)} == _RESOURCES.keys()
