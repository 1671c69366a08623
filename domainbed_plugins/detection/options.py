"""What is asked of detectors, and what they find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from domainbed_plugins.runs.saved import Job

if TYPE_CHECKING:
    import numpy.typing as npt


#: By the name they have on the command line and in the records.
DETECTORS = ("nacue", "line", "nap", "msp", "energy", "vim")


#: How the test environments are called in the records.
COVARIATE = "covariate"


@dataclass(frozen=True)
class DetectOptions:
    """What is asked of the detectors.

    Attributes
    ----------
    detectors : tuple of str
        Names of `DETECTORS`. Empty: all that the network allows.
    ood : str, optional
        Another data set.
    ood_data_dir : str, optional
        Where it lies. None: where the run's data lies.
    search : str
        The transformation whose images the settings are searched against (see
        `nacme.ood.outliers.pseudo_outliers`); ``"none"`` for the published settings.
    fit_samples, ood_samples : int
        How many training images to fit on, and images of another data set to score, at most.
    n_boot, seed : int
        Of the intervals; the seed also draws the images.
    """

    detectors: tuple[str, ...] = ()
    ood: str | None = None
    ood_data_dir: str | None = None
    search: str = "jigsaw"
    fit_samples: int = 1000
    ood_samples: int = 2000
    n_boot: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Detection:
    """What one checkpoint's detectors found.

    Attributes
    ----------
    job : Job
    rows : list of dict
        One for each detector and shift.
    scores : dict of str to dict of str to ndarray
        By detector, then by what was scored: ``"in"``, `COVARIATE`, and the other data set's name.
    settings : dict of str to dict
        By detector; found by search where it has any.
    """

    job: Job
    rows: list[dict[str, Any]]
    scores: dict[str, dict[str, npt.NDArray[Any]]]
    settings: dict[str, dict[str, Any]]
