"""Finding the testbed: the embedded one, or a DomainBed clone.

Both offer the same modules. GReg is added to both, image folders of other sizes to DomainBed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from domainbed_plugins.interface import EXPECTED, Testbed
from nacme.errors import ConfigError, nearest

CLONE = "git clone https://github.com/facebookresearch/DomainBed"
EMBEDDED = "domainbed_plugins.testbed"


def embedded() -> Testbed:
    """Load the embedded testbed.

    Returns
    -------
    Testbed
    """
    from nacme import __version__

    return _load("embedded", EMBEDDED, __version__)


def domainbed(root: str | Path | None = None) -> Testbed:
    """Load DomainBed.

    Parameters
    ----------
    root : path, optional
        A clone. None: ``DOMAINBED_ROOT``, or the ``domainbed`` that Python already finds.

    Returns
    -------
    Testbed

    Raises
    ------
    ConfigError
        If there is none, it cannot be imported, or it lacks a function that the runner calls.
    """
    root = root or os.environ.get("DOMAINBED_ROOT")
    if root:
        if not (Path(root) / "domainbed" / "algorithms.py").is_file():
            raise ConfigError(
                f"{root} is no DomainBed clone (it has no domainbed/algorithms.py); make one: {CLONE}"
            )
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
    spec = importlib.util.find_spec("domainbed")
    if spec is None:
        raise ConfigError(
            f"DomainBed is not here: {CLONE}, set DOMAINBED_ROOT to the clone, and pip install 'nacme[domainbed]'"
        )
    home = Path((spec.submodule_search_locations or [""])[0])
    return _load("domainbed", "domainbed", _commit(home))


def find(dataset: str, root: str | Path | None = None) -> Testbed:
    """Load the testbed that a data set belongs to.

    Parameters
    ----------
    dataset : str
        Its name.
    root : path, optional
        A DomainBed clone, used for every data set that is not embedded.

    Returns
    -------
    Testbed

    Raises
    ------
    ConfigError
        See `domainbed`.
    """
    inside = embedded()
    if dataset in inside.datasets.DATASETS:
        return inside
    try:
        testbed = domainbed(root)
    except ConfigError as error:
        names = inside.datasets.DATASETS
        raise ConfigError(f"{error} (--dataset {dataset!r} is not embedded; {nearest(dataset, names)})") from None
    from domainbed_plugins.backends import image_folders

    image_folders.add(testbed, dataset)
    return testbed


def module(name: str) -> ModuleType:
    """Import a module of DomainBed that training does not need.

    Parameters
    ----------
    name : str
        Without ``domainbed.`` before it.

    Returns
    -------
    module

    Raises
    ------
    ConfigError
        If DomainBed cannot be found, or the module cannot be imported.
    """
    domainbed()
    try:
        return importlib.import_module(f"domainbed.{name}")
    except ImportError as error:
        raise ConfigError(
            f"domainbed.{name} cannot be imported ({error}); pip install 'nacme[domainbed]'"
        ) from error


def _load(name: str, package: str, version: str) -> Testbed:
    modules = {}
    for module, wanted in EXPECTED.items():
        try:
            modules[module] = importlib.import_module(f"{package}.{module}")
        except ImportError as error:
            raise ConfigError(
                f"{package}.{module} cannot be imported ({error}); pip install 'nacme[domainbed]'"
            ) from error
        for function in wanted:
            if not hasattr(modules[module], function):
                raise ConfigError(
                    f"{package}.{module} has no {function!r}; update the clone to a commit that has it"
                )
    from domainbed_plugins.algorithms import greg
    from domainbed_plugins.backends import image_folders

    testbed = Testbed(
        name,
        version,
        modules["datasets"],
        modules["algorithms"],
        modules["hparams_registry"],
        modules["lib.misc"],
    )
    greg.register(testbed)
    image_folders.register(testbed)
    return testbed


def _commit(home: Path) -> str:
    asked = subprocess.run(
        ["git", "-C", str(home), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown commit"
