"""What a criterion brings that is counted in the pass rather than computed from collected outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from nacme.taps import Reading


class Counter(Protocol):
    """What measures a criterion batch by batch, keeping counts rather than the network's outputs."""

    def update(self, env: str, reading: Reading, correct: Tensor) -> None:
        """Count a batch of the split of that name: what the taps read, and which samples were correct, [B]."""

    def value(self) -> float:
        """Work out the criterion when the pass is over; NaN where it is undefined."""

    def details(self) -> dict[str, Any]:
        """List what the record says beside the value, as numbers by name."""

    def memory(self, samples: int, width: int, splits: int, layers: int) -> int:
        """Estimate the bytes held until the pass is over."""
