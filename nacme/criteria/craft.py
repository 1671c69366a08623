"""Accuracy on crafted shifts: of validation images under transforms that training does not use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nacme.criteria.registry import criterion

if TYPE_CHECKING:
    from torch import Generator, Tensor

#: Seed of the noise and of the choice of the image that another is mixed with.
SEED = 0
#: Images that are predicted at a time.
BATCH = 64


@criterion(
    higher_is_better=True,
    sees="ind",
    needs=["weights"],
    cost="a further pass over a sample of the validation images (--craft_samples, 200), five times",
    source="ours, after arXiv 2409.19774 and Xu et al., arXiv 2207.02093 (Fourier mix)",
    optional=True,
)
def craft_acc(data: Any) -> float:
    """Validation accuracy on five fixed transforms: edges, posterising, noise, blur, half a Fourier mix.

    The sample is the first ``craft_samples`` images, as many of each training environment. Transforms work between
    an image's own least and largest value, so they do not ask how inputs were normalized. The mean is over
    environments and transforms.

    Parameters
    ----------
    data : Collected

    Returns
    -------
    float
        In [0, 1]; NaN where inputs are no images [B, C, H, W] of at least 3 x 3 pixels.
    """
    import torch

    from nacme.measurement import is_correct
    from nacme.prediction import predict_logits
    from nacme.taps import untouched

    predict = getattr(data.model, "predict", data.model)
    each = max(1, data.craft_samples // len(data.loaders))
    accuracies = []
    with torch.random.fork_rng(), untouched(data.model), torch.no_grad():
        samples = [_first(data.model, loader, each) for loader in data.loaders.values()]
        if any(x.dim() != 4 or min(x.shape[2:]) < 3 for x, _ in samples):
            return math.nan
        for x, labels in samples:
            for transform in TRANSFORMS:
                # the generator is the CPU's, whatever the device: the same noise everywhere
                crafted = in_own_range(x, transform, torch.Generator().manual_seed(SEED))
                logits = torch.cat(
                    [predict_logits(predict, part) for part in torch.split(crafted.to(x.dtype), BATCH)]
                )
                correct = is_correct(logits, labels).double().mean()
                accuracies.append(math.nan if logits.isnan().any() else float(correct))
    return sum(accuracies) / len(accuracies)


def in_own_range(x: Tensor, transform: Callable[[Tensor, Generator], Tensor], generator: Generator) -> Tensor:
    """Apply a transform of images [B, C, H, W] in [0, 1] between each image's least and largest value.

    Parameters
    ----------
    x : Tensor, shape [B, C, H, W]
    transform : callable
        One of `TRANSFORMS`.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    Tensor, shape [B, C, H, W], float32
    """
    x = x.float()
    low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
    span = (high - low).clamp(min=1e-12)
    return low + span * transform((x - low) / span, generator).clamp(0, 1)


def edges(x: Tensor, generator: Generator) -> Tensor:
    """Leave the length of the Sobel gradient, at most 1."""
    import torch

    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=x.device) / 4
    return torch.hypot(_filtered(x, sobel), _filtered(x, sobel.T))


def posterized(x: Tensor, generator: Generator) -> Tensor:
    """Leave four levels."""
    return (x * 3).round() / 3


def noisy(x: Tensor, generator: Generator) -> Tensor:
    """Add Gaussian noise, its standard deviation a tenth of the range."""
    import torch

    return x + 0.1 * torch.randn(x.shape, generator=generator).to(x.device)


def blurred(x: Tensor, generator: Generator) -> Tensor:
    """Blur three times by the binomial filter of width 3, about a Gaussian of 1.2 pixels."""
    import torch

    row = torch.tensor([1.0, 2.0, 1.0], device=x.device) / 4
    for _ in range(3):
        x = _filtered(x, row.outer(row))
    return x


def fourier_mixed(x: Tensor, generator: Generator) -> Tensor:
    """Take half of the amplitude from another image of the sample; the phase stays."""
    import torch

    spectrum = torch.fft.rfft2(x)
    # a random cycle through all images: none is mixed with itself, unless it is alone
    order = torch.randperm(len(x), generator=generator)
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    amplitude = (spectrum.abs() + spectrum[other.to(x.device)].abs()) / 2
    mixed: Tensor = torch.fft.irfft2(torch.polar(amplitude, spectrum.angle()), s=x.shape[2:])
    return mixed


TRANSFORMS = (edges, posterized, noisy, blurred, fourier_mixed)


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Filter each channel by one kernel [3, 3], the border repeated."""
    from torch.nn import functional as F

    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    filtered: Tensor = F.conv2d(padded.flatten(0, 1).unsqueeze(1), kernel[None, None])
    return filtered.view(x.shape)


def _first(model: Any, loader: Any, count: int) -> tuple[Tensor, Tensor]:
    """Bring the first samples of a loader to where the model is."""
    import torch

    from nacme.observation import batches

    inputs, labels, held = [], [], 0
    for x, y in batches(model, loader):
        if not isinstance(x, torch.Tensor):  # several inputs are no images
            return torch.empty(0), y
        inputs.append(x)
        labels.append(y)
        held += len(x)
        if held >= count:
            break
    return torch.cat(inputs)[:count], torch.cat(labels)[:count]
