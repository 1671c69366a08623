"""A convolutional network small enough to train in seconds on one core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class Featurizer(nn.Module):
    """Three convolutions and a global average pool: images to a non-negative feature vector.

    Group normalization, as in DomainBed's network for MNIST, so that a sample's features do not depend on
    the batch that it comes in.

    Parameters
    ----------
    input_shape : sequence of int
        ``(channels, height, width)``.
    hparams : mapping
        Not read: the architecture is fixed. Stands here for DomainBed's signature.

    Attributes
    ----------
    n_outputs : int
        Length of the feature vector.
    """

    n_outputs = 64

    def __init__(self, input_shape: Sequence[int], hparams: Mapping[str, Any]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 16, 3, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(4, 16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.norm2 = nn.GroupNorm(4, 32)
        self.conv3 = nn.Conv2d(32, self.n_outputs, 3, stride=2, padding=1)
        self.norm3 = nn.GroupNorm(4, self.n_outputs)
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, channels, height, width]`` to ``[B, n_outputs]``, all at least 0."""
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        pooled: Tensor = self.avgpool(x)
        return pooled.flatten(1)


def Classifier(in_features: int, out_features: int, is_nonlinear: bool = False) -> nn.Module:
    """Build the head that turns features into logits.

    Parameters
    ----------
    in_features, out_features : int
        Length of the feature vector, and number of classes.
    is_nonlinear : bool
        Two hidden layers (a half and a quarter of `in_features`) rather than one linear map.

    Returns
    -------
    torch.nn.Module
        ``[B, in_features]`` to ``[B, out_features]``.
    """
    if not is_nonlinear:
        return nn.Linear(in_features, out_features)
    half, quarter = in_features // 2, in_features // 4
    return nn.Sequential(
        nn.Linear(in_features, half),
        nn.ReLU(),
        nn.Linear(half, quarter),
        nn.ReLU(),
        nn.Linear(quarter, out_features),
    )
