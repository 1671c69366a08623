from __future__ import annotations

import pytest

from domainbed_plugins.sweep.jobs import make_jobs
from domainbed_plugins.sweep.launchers.debug import DebugLauncher
from domainbed_plugins.sweep.spec_file import load_spec

SPEC = """
datasets: [RotatedDigits]
algorithms: [ERM]
test_envs: [[0], [1]]
hparams_seeds: 2
steps: 41
checkpoint_freq: 10
n_workers: 0
keep: all
nac: {alpha: 1, fill: 0.08, grid: {alpha: [0.1, 1], bins: [20, 50]}}
"""


@pytest.fixture(scope="session")
def small_sweep(tmp_path_factory):
    """A folder with a specification, ``spec.yaml``, and the four runs really trained by it, in ``sweep``."""
    root = tmp_path_factory.mktemp("small")
    (root / "spec.yaml").write_text(SPEC)
    spec = load_spec(root / "spec.yaml")
    DebugLauncher(spec.train_options()).run(make_jobs(spec, root / "sweep", None))
    return root
