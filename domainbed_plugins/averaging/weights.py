"""Means of weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from domainbed_plugins.runs.checkpoints import CheckpointError

State = Mapping[str, Tensor]


class MeanState:
    """The mean of states that come one by one, summed in double precision.

    What is no floating point number (a count of steps, say) is that of the first.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}

    def fits(self, state: State) -> str | None:
        """Say why a state cannot be added; None if it can."""
        if not self.count:
            return None
        lacking = [key for key in self._first if key not in state] + [
            key for key in state if key not in self._first
        ]
        if lacking:
            return f"only one of two has {lacking[0]}"
        for key, value in self._first.items():
            if value.shape != state[key].shape:
                return f"{key} has shapes {list(value.shape)} and {list(state[key].shape)}"
        return None

    def added(self, state: State) -> MeanState:
        """Give the mean that one more state leads to; this one stays.

        Raises
        ------
        CheckpointError
            If it is of another architecture.
        """
        if reason := self.fits(state):
            raise CheckpointError(f"the members are of different architectures: {reason}")
        new = MeanState()
        new.count = self.count + 1
        new._first = self._first or dict(state)
        new._sums = {
            key: value.double() + self._sums.get(key, 0.0)
            for key, value in state.items()
            if value.is_floating_point()
        }
        return new

    def moved(self, name: str) -> bool:
        """Whether any entry of such a name is not the same in all members."""
        return any(
            bool((self._sums[key] != self.count * value.double()).any())
            for key, value in self._first.items()
            if key.endswith(name)
        )

    def state(self) -> dict[str, Tensor]:
        """Compute the mean: by name, of the members' types and shapes."""
        return {
            key: (self._sums[key] / self.count).to(value.dtype) if key in self._sums else value
            for key, value in self._first.items()
        }
