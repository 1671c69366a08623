"""How checkpoints are measured, and when one has been."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domainbed_plugins.recording.options import RecordOptions, begun_layers


@dataclass(frozen=True)
class ScoreOptions(RecordOptions):
    """How checkpoints are measured."""

    def asked(self) -> dict[str, Any]:
        """Say in JSON what is asked for; a step that has it on record is done."""
        return {**self.as_json(), "criteria": sorted(self.criteria) if self.criteria is not None else None}

    def lacking(self, record: Mapping[str, Any]) -> list[str] | None:
        """Name the criteria that are still to be measured at a step.

        Parameters
        ----------
        record : mapping
            What ``nac.jsonl`` has of the step, empty for nothing.

        Returns
        -------
        list of str or None
            Empty: nothing is. None: all that is asked for is.
        """
        nac = record.get("nac")
        before = nac.get("asked") if isinstance(nac, dict) else None
        if not isinstance(nac, dict) or not isinstance(before, dict):
            return None
        now = json.loads(json.dumps(self.asked()))
        added = ("layers", "grid", "criteria", "target_unlabeled")
        if any(before.get(key) != now[key] for key in now if key not in added):
            return None
        layers = begun_layers(before.get("layers"), nac["layers"])
        if layers != now["layers"] and (now["layers"] is not None or not isinstance(layers, str)):
            return None
        grid, names = before.get("grid") or [], before.get("criteria")
        if any(one not in grid for one in now["grid"]):
            return None
        if now["target_unlabeled"] and not before["target_unlabeled"]:
            return None
        if now["criteria"] is None:
            return [] if names is None else None
        return [name for name in now["criteria"] if name not in record and name not in (names or ())]
