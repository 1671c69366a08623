"""What the three detectors share: running the network once, and scoring what was read from it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from pytorch_ood.api import Detector, ModelNotSetException
from torch import Tensor, nn
from typing_extensions import Self

from nacme.errors import NacmeError

Extract = dict[str, Tensor]


class NetworkDetector(Detector):  # type: ignore[misc]
    """A detector in three steps: read the network, fit on the readings, score readings.

    Readings do not depend on the hyper-parameters, so a search over these runs the network once.

    Attributes
    ----------
    model : nn.Module or None
        Gives logits from ``predict(x)`` where it has that method, else from ``forward``. Left as it was found.
    """

    model: nn.Module | None

    @abstractmethod
    def extract(self, x: Tensor) -> Extract:
        """Run the network on a batch.

        Parameters
        ----------
        x : Tensor, shape [B, ...]

        Returns
        -------
        dict of str to Tensor
            Each of shape ``[B, ...]``.
        """

    @abstractmethod
    def score(self, readings: Extract) -> Tensor:
        """Score readings.

        Parameters
        ----------
        readings : dict of str to Tensor

        Returns
        -------
        Tensor, shape [B]
            Higher is more out-of-distribution.
        """

    def fit_extracted(self, readings: Extract, labels: Tensor | None) -> Self:
        """Fit on readings. Detectors that need no fitting do nothing.

        Parameters
        ----------
        readings : dict of str to Tensor
        labels : Tensor, shape [B], or None

        Returns
        -------
        Self
        """
        return self

    def fit(self, data_loader: Iterable[Any]) -> Self:
        """Fit on in-distribution training samples. Samples with negative labels are left out.

        Parameters
        ----------
        data_loader : iterable of (x, y) or of x
            1,000 samples, balanced over the classes, suffice; readings of all of them are held in memory.

        Returns
        -------
        Self

        Raises
        ------
        ModelNotSetException
            If there is no model.
        NacmeError
            If no in-distribution sample is left, or images hold NaN.
        """
        if not self.requires_fit:
            return self
        return self.fit_extracted(*self.collect(data_loader))

    def predict(self, x: Tensor) -> Tensor:
        """Score a batch.

        Parameters
        ----------
        x : Tensor, shape [B, ...]
            The network's input.

        Returns
        -------
        Tensor, shape [B]
            Higher is more out-of-distribution.

        Raises
        ------
        ModelNotSetException
            If there is no model.
        RequiresFittingException
            If the detector needs fitting and was not fitted.
        NacmeError
            If images hold NaN.
        """
        self._check_fitted()
        return self.score(self.extract(self._admit(x)))

    def collect(self, data_loader: Iterable[Any]) -> tuple[Extract, Tensor | None]:
        """Read the network on all in-distribution samples of a loader.

        Parameters
        ----------
        data_loader : iterable of (x, y) or of x

        Returns
        -------
        tuple
            Readings, concatenated, and labels of shape ``[n]`` (None if the loader has none).
        """
        found: list[Extract] = []
        labels: list[Tensor] = []
        for batch in data_loader:
            x, y = (batch[0], batch[1]) if isinstance(batch, (tuple, list)) else (batch, None)
            if y is not None:
                known = y >= 0
                x, y = x[known], y[known]
                labels.append(y)
            if len(x):
                found.append(self.extract(self._admit(x)))
        if not found:
            raise NacmeError(
                f"{type(self).__name__}: the loader holds no in-distribution sample (label of at least 0)"
            )
        readings = {key: torch.cat([one[key] for one in found]) for key in found[0]}
        if not labels:
            return readings, None
        return readings, torch.cat(labels).to(next(iter(readings.values())).device)

    def _check_fitted(self) -> None:
        """Raise RequiresFittingException unless fitted."""

    def _network(self) -> nn.Module:
        if self.model is None:
            raise ModelNotSetException(f"{type(self).__name__} has no model: pass one when building it")
        return self.model

    def _admit(self, x: Tensor) -> Tensor:
        parameter = next(self._network().parameters(), None)
        x = x if parameter is None else x.to(parameter.device)
        bad = x.flatten(1).isfinite().all(dim=1).logical_not()
        if bad.any():
            raise NacmeError(
                f"{int(bad.sum())} of {len(x)} images hold NaN or infinite values (the first at position "
                f"{int(bad.nonzero()[0])} of the batch); leave them out or repair them"
            )
        return x
