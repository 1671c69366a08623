"""What the plugins call of DomainBed, and what a testbed in its place must offer."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

#: What the runner calls, by module.
EXPECTED = {
    "datasets": ("DATASETS", "get_dataset_class", "num_environments"),
    "algorithms": ("ALGORITHMS", "Algorithm", "get_algorithm_class"),
    "hparams_registry": ("default_hparams", "random_hparams"),
    "lib.misc": ("Tee", "make_weights_for_balanced_classes", "print_row", "seed_hash", "split_dataset"),
}


@dataclass(frozen=True)
class Testbed:
    """A testbed's modules, under DomainBed's names.

    Attributes
    ----------
    name : str
        ``"embedded"`` or ``"domainbed"``.
    version : str
        The commit of a clone; nacme's version for the embedded testbed.
    datasets, algorithms, hparams_registry, misc : module
    """

    __test__ = False  # the name starts like a test's

    name: str
    version: str
    datasets: ModuleType
    algorithms: ModuleType
    hparams_registry: ModuleType
    misc: ModuleType

    def __str__(self) -> str:
        return f"{self.name} {self.version}"
