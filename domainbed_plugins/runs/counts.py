"""What ``nac_me`` counted at each checkpoint of a run, kept until the run is over: ``sham_permuted`` needs all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from domainbed_plugins.runs import files as run_files
from nacme.criteria.shams import Counts, permuted_coverage
from nacme.system import files

SHAM = "sham_permuted"


class CountStore:
    """A folder with one small file a checkpoint, which is gone once the run is over.

    Parameters
    ----------
    folder : path
    about : Any
        How the counts are made, as JSON: files that were made otherwise are left alone.
    """

    def __init__(self, folder: Path, about: Any) -> None:
        self._folder, self._about = folder, json.dumps(about, sort_keys=True)

    def add(self, step: int, counts: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Keep a checkpoint's counts.

        Parameters
        ----------
        step : int
        counts : mapping of str to Tensor, shape [N, M - 1]
            By layer.
        record : mapping
            The checkpoint's; one without a ``nac_me`` has no counts to keep.

        Raises
        ------
        NacmeError
            If the file cannot be written.
        """
        if record["nac_me"] is None:
            return
        content: dict[str, Any] = {f"counts {layer}": value.numpy() for layer, value in counts.items()}
        content |= {"about": self._about, "counted": record["nac"]["num_counted"]}
        self._folder.mkdir(exist_ok=True)
        run_files.write_atomically(
            self._folder / f"step{step}.npz", lambda file: np.savez_compressed(file, **content)
        )

    def shams(self, steps: Iterable[int], fill: int | float, seed: int) -> dict[int, float | None]:
        """Compute ``sham_permuted`` of a run's checkpoints.

        Parameters
        ----------
        steps : iterable of int
            That the run has on record.
        fill : int or float
            ``O``.
        seed : int
            Of the permutation.

        Returns
        -------
        dict of int to float or None
            By step, of those whose counts are there; empty for fewer than two.
        """
        held = {step: counts for step in sorted(steps) if (counts := self._read(step)) is not None}
        if len(held) < 2:
            return {}
        values = permuted_coverage(list(held.values()), fill, seed)
        return {step: value if value == value else None for step, value in zip(held, values)}

    def clear(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, step: int) -> Counts | None:
        path = self._folder / f"step{step}.npz"
        try:
            held = files.read_arrays(path)
            if str(held["about"]) != self._about:
                return None
            layers = {key: value for key, value in held.items() if key.startswith("counts ")}
            return Counts(layers, int(held["counted"]))
        except (OSError, ValueError, KeyError, TypeError):  # none, or not what was written here
            return None
