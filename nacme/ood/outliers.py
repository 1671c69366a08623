"""Pseudo-outliers: in-distribution images transformed until their content no longer is. No OOD data is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nacme.errors import ConfigError, nearest


def pseudo_outliers(images: Tensor, kind: str = "mix", generator: torch.Generator | None = None) -> Tensor:
    """Make outliers out of in-distribution images.

    Parameters
    ----------
    images : Tensor, shape [B, C, H, W]
        In whatever normalization the network takes.
    kind : {"mix", "rotate", "jigsaw", "noise"}
        ``"rotate"``: by 90, 180 or 270 degrees (180 unless square). ``"jigsaw"``: a 4 by 4 grid of patches in a
        random order. ``"noise"``: Gaussian noise of each image's own standard deviation on top. ``"mix"``: each
        image suffers one of the three.
    generator : torch.Generator, optional
        Source of the randomness, on the CPU.

    Returns
    -------
    Tensor, shape [B, C, H, W]
        New; the images stay as they were.

    Raises
    ------
    ConfigError
        If ``kind`` is unknown or the images are not four-dimensional.

    Notes
    -----
    A rotation makes an outlier only where up and down mean something: of data that is rotated by nature, use
    ``"jigsaw"`` or ``"noise"``.
    """
    if images.dim() != 4:
        raise ConfigError(f"images must be [B, C, H, W] to make outliers of, not {list(images.shape)}")
    if kind == "mix":
        chosen = torch.randint(len(_KINDS), (len(images),), generator=generator)
        mixed = torch.empty_like(images)
        for index, make in enumerate(_KINDS.values()):
            rows = (chosen == index).to(images.device)
            mixed[rows] = make(images[rows], generator)
        return mixed
    if kind not in _KINDS:
        raise ConfigError(f"outliers={kind!r} are unknown; {nearest(kind, ['mix', *_KINDS])}")
    return _KINDS[kind](images, generator)


def resized(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Make images of another data set fit a network.

    Parameters
    ----------
    images : Tensor, shape [B, C, H, W]
    shape : sequence of int
        ``(C', H', W')`` that the network takes.

    Returns
    -------
    Tensor, shape [B, C', H', W']
        Other channel counts go through the mean over channels; other sizes are interpolated.

    Raises
    ------
    ConfigError
        If neither channel count is 1 nor are they equal.
    """
    channels, *size = shape
    if images.shape[1] != channels:
        if 1 not in (images.shape[1], channels):
            raise ConfigError(f"images of {images.shape[1]} channels do not fit images of {channels}")
        images = images.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
    if list(images.shape[2:]) != size:
        images = nn.functional.interpolate(images, size=tuple(size), mode="bilinear", antialias=True)
    return images


def _rotate(images: Tensor, generator: torch.Generator | None) -> Tensor:
    if images.shape[2] != images.shape[3]:
        return images.rot90(2, dims=(2, 3))
    turns = torch.randint(1, 4, (len(images),), generator=generator).to(images.device)
    turned = images.clone()
    for quarter in (1, 2, 3):
        turned[turns == quarter] = images[turns == quarter].rot90(quarter, dims=(2, 3))
    return turned


def _jigsaw(images: Tensor, generator: torch.Generator | None, grid: int = 4) -> Tensor:
    batch, channels, height, width = images.shape
    high, wide = height // grid, width // grid
    if not high or not wide:
        raise ConfigError(f"images of {height} x {width} are too small for a {grid} x {grid} jigsaw")
    # a border that the grid does not divide stays in place
    inner = images[:, :, : high * grid, : wide * grid]
    patches = inner.reshape(batch, channels, grid, high, grid, wide).transpose(3, 4).flatten(2, 3)
    order = torch.rand(batch, grid * grid, generator=generator).argsort(dim=1).to(images.device)
    patches = patches.gather(2, order[:, None, :, None, None].expand_as(patches))
    shuffled = images.clone()
    shuffled[:, :, : high * grid, : wide * grid] = (
        patches.view(batch, channels, grid, grid, high, wide).transpose(3, 4).reshape_as(inner)
    )
    return shuffled


def _noise(images: Tensor, generator: torch.Generator | None) -> Tensor:
    rows = images.flatten(1)
    spread = (rows - rows.mean(dim=1, keepdim=True)).square().mean(dim=1).sqrt()[:, None, None, None]
    noise = torch.randn(images.shape, generator=generator).to(images)
    return images + spread * noise


_KINDS = {"rotate": _rotate, "jigsaw": _jigsaw, "noise": _noise}
