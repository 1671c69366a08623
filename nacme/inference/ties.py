"""Groups of tied checkpoints, and their sizes once each run is counted so many times."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Ranked:
    """One variable over checkpoints of many runs: its groups of equal values, ascending, and whose they are.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Finite.
    run : ndarray of int, shape (n,)
        Which run each belongs to, ``0 .. R - 1`` in ascending order.
    """

    def __init__(self, values: npt.NDArray[Any], run: npt.NDArray[np.intp]) -> None:
        from scipy.sparse import csr_array

        distinct, of_each = np.unique(values, return_inverse=True)
        # narrow integers are compared many at a time
        self.rank = of_each.astype(np.int16 if len(distinct) < 2**15 else np.int32)
        shape = len(distinct), int(run[-1]) + 1
        self._members = csr_array((np.ones(len(run)), (of_each, run)), shape)
        self._members.sum_duplicates()
        several = np.diff(self._members.indptr) > 1
        # groups within one run weigh what the run weighs: only what they sum to is needed
        alone = self._members[~several]
        self._alone = {
            power: np.bincount(alone.indices, alone.data**power, minlength=shape[1]) for power in (2, 3)
        }
        self._shared = self._members[several]
        self._of_runs = self._shared.T.tocsr()

    def powers(self, weights: Array, power: int) -> Array:
        """Sum the 2nd or 3rd powers of the groups' sizes, shape (B,), runs counted as in weights, shape (B, R)."""
        sizes = self._shared @ np.ascontiguousarray(weights.T)
        return np.asarray(weights**power @ self._alone[power] + (sizes**power).sum(0))

    def slopes(self, weights: Array, power: int) -> Array:
        """Return the derivatives of `powers` by each weight over the power, shape (B, R)."""
        sizes = self._shared @ np.ascontiguousarray(weights.T)
        less = power - 1
        return np.asarray(weights**less * self._alone[power] + (self._of_runs @ sizes**less).T)

    def centred(self, weights: Array) -> Array:
        """Return twice the centred average rank of each checkpoint, shape (n, B)."""
        sizes = self._members @ np.ascontiguousarray(weights.T)
        upto = np.cumsum(sizes, axis=0)
        return np.asarray((2 * upto - sizes - upto[-1])[self.rank])
