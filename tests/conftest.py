"""Fixtures that more than one package's tests use."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

#: Made by older code, which is not there any more.
collect_ignore = ["fixtures"]
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """Load a golden file by name as tensors."""

    def load(name):
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as data:
            return {key: torch.from_numpy(data[key]) for key in data.files if data[key].dtype.kind in "biuf"}

    return load


@pytest.fixture(scope="session")
def nacme_data():
    """The folder of small real data sets."""
    if not os.environ.get("NACME_DATA"):
        pytest.skip("needs the small real data sets: set NACME_DATA to their folder")
    return Path(os.environ["NACME_DATA"])


@pytest.fixture(scope="session")
def domainbed():
    """The DomainBed testbed."""
    if not os.environ.get("DOMAINBED_ROOT"):
        pytest.skip("needs a DomainBed clone: set DOMAINBED_ROOT to it")
    from domainbed_plugins.backends import find as backends

    return backends.domainbed()
