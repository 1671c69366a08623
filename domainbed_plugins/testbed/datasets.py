"""Two multi-domain datasets made of scikit-learn's 1,797 scanned digits; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision.transforms.functional import InterpolationMode, rotate

DATASETS = ["RotatedDigits", "ColoredDigits"]

# Environments are the same in every run whatever its seed: checkpoints are compared on the same images, and
# scoring after training has to rebuild them.
_SEED = 0


def get_dataset_class(dataset_name: str) -> type[MultipleDomainDataset]:
    """Return the dataset class of that name.

    Raises
    ------
    NotImplementedError
        If there is none.
    """
    if dataset_name not in DATASETS:
        raise NotImplementedError(f"Dataset not found: {dataset_name}")
    found: type[MultipleDomainDataset] = globals()[dataset_name]
    return found


def num_environments(dataset_name: str) -> int:
    """Return how many environments the dataset of that name has."""
    return len(get_dataset_class(dataset_name).ENVIRONMENTS)


class MultipleDomainDataset:
    """A sequence of environments, each a labelled ``torch.utils.data.Dataset``.

    Attributes
    ----------
    ENVIRONMENTS : list of str
        Their names, in order.
    INPUT_SHAPE, input_shape : tuple of int
        ``(channels, height, width)``.
    num_classes : int
        Labels are ``0 .. num_classes - 1``.
    N_STEPS, CHECKPOINT_FREQ : int
        Length of a training run, and steps between two evaluations, unless the run says otherwise.
    N_WORKERS : int
        Loader processes; none, since the images lie in memory.
    """

    N_STEPS: ClassVar[int] = 301
    CHECKPOINT_FREQ: ClassVar[int] = 25
    N_WORKERS: ClassVar[int] = 0
    ENVIRONMENTS: ClassVar[list[str]]
    INPUT_SHAPE: ClassVar[tuple[int, int, int]]

    num_classes: int

    def __init__(self, environments: list[TensorDataset]) -> None:
        self.input_shape = self.INPUT_SHAPE
        self.datasets = environments

    def __getitem__(self, index: int) -> TensorDataset:
        return self.datasets[index]

    def __iter__(self) -> Iterator[TensorDataset]:
        return iter(self.datasets)

    def __len__(self) -> int:
        return len(self.datasets)


def _digits(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Load the digits in random order: images ``[1797, 1, 16, 16]`` in ``[0, 1]``, labels ``[1797]``."""
    pixels, digit = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    # The scans fill their frame: a margin keeps the strokes inside when they are turned.
    images = F.pad(F.interpolate(images, size=(12, 12), mode="bilinear", align_corners=False), (2, 2, 2, 2))
    order = torch.randperm(len(images), generator=generator)
    return images[order], torch.as_tensor(digit, dtype=torch.int64)[order]


class RotatedDigits(MultipleDomainDataset):
    """Ten digits, each sixth of them turned by another angle: RotatedMNIST (Ghifary et al. 2015) in small.

    Parameters
    ----------
    root : str or None
        Not read: the images come with scikit-learn.
    test_envs : sequence of int
        Not read: nothing here depends on them.
    hparams : mapping
        Not read.
    """

    ENVIRONMENTS: ClassVar[list[str]] = ["0", "15", "30", "45", "60", "75"]
    INPUT_SHAPE: ClassVar[tuple[int, int, int]] = (1, 16, 16)
    num_classes = 10

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
        images, digit = _digits(torch.Generator().manual_seed(_SEED))
        count = len(self.ENVIRONMENTS)
        super().__init__(
            [
                TensorDataset(
                    rotate(images[i::count], float(angle), interpolation=InterpolationMode.BILINEAR),
                    digit[i::count],
                )
                for i, angle in enumerate(self.ENVIRONMENTS)
            ]
        )


class ColoredDigits(MultipleDomainDataset):
    """Small digits (0 to 4) against large ones, with a colour that misleads: ColoredMNIST in small.

    As Arjovsky et al. 2019 (Invariant Risk Minimization, section 5.2): the label ``digit < 5`` is flipped
    with probability 0.25, and the colour is the label flipped with probability 0.1, 0.2 or 0.9. In the first
    two environments colour tells more than shape; in the third it tells the opposite.

    Parameters
    ----------
    root : str or None
        Not read: the images come with scikit-learn.
    test_envs : sequence of int
        Not read: nothing here depends on them.
    hparams : mapping
        Not read.
    """

    ENVIRONMENTS: ClassVar[list[str]] = ["+90%", "+80%", "-90%"]
    INPUT_SHAPE: ClassVar[tuple[int, int, int]] = (2, 16, 16)
    num_classes = 2

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
        generator = torch.Generator().manual_seed(_SEED)
        images, digit = _digits(generator)
        environments = []
        for i, colour_flip in enumerate((0.1, 0.2, 0.9)):
            shape, of_digit = images[i::3], digit[i::3]
            label = (of_digit < 5) ^ (torch.rand(len(of_digit), generator=generator) < 0.25)
            colour = label ^ (torch.rand(len(label), generator=generator) < colour_flip)
            channels = torch.stack([~colour, colour], dim=1)[:, :, None, None]
            environments.append(TensorDataset(shape * channels, label.long()))
        super().__init__(environments)
