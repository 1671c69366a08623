"""The networks that are measured, and the data."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

#: Part of the samples that keep the network's own prediction as their label: the accuracy of every network here.
ACCURACY = 0.8


class MNISTCNN(nn.Module):
    """DomainBed's network for MNIST (``domainbed/networks.py``), with its classifier."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn0 = nn.Conv2d(2, 64, 3, padding=1), nn.GroupNorm(8, 64)
        self.conv2, self.bn1 = nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.GroupNorm(8, 128)
        self.conv3, self.bn2 = nn.Conv2d(128, 128, 3, padding=1), nn.GroupNorm(8, 128)
        self.conv4, self.bn3 = nn.Conv2d(128, 128, 3, padding=1), nn.GroupNorm(8, 128)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, 2, 28, 28]`` to ``[B, C]``."""
        x = self.bn0(F.relu(self.conv1(x)))
        x = self.bn1(F.relu(self.conv2(x)))
        x = self.bn2(F.relu(self.conv3(x)))
        x = self.bn3(F.relu(self.conv4(x)))
        return self.classifier(self.avgpool(x).flatten(1))


class Algorithm(nn.Module):
    """What DomainBed evaluates: a module that predicts."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def predict(self, x: Tensor) -> Tensor:
        """Logits, [B, C]."""
        return self.network(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, for code that calls a model."""
        return self.network(x)


@dataclass(frozen=True)
class Workload:
    """A network by name, and how much data it sees.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of one input.
    num_classes : int
    penultimate : str
        Module whose output the head reads.
    stages : tuple of str
        Four layers spread over the network's depth.
    batch, batches : int
        On the CPU. On CUDA batches hold 64 samples, as DomainBed's do, and there are ten times as many.
    """

    name: str
    shape: tuple[int, int, int]
    num_classes: int
    penultimate: str
    stages: tuple[str, ...]
    batch: int
    batches: int

    def build(self, device: torch.device) -> Algorithm:
        """Make the network with random weights, in evaluation mode."""
        torch.manual_seed(0)
        if self.name == "MNIST_CNN":
            network: nn.Module = MNISTCNN(self.num_classes)
        elif self.name.startswith("ResNet"):
            network = getattr(torchvision.models, self.name.replace("-", "").lower())(num_classes=self.num_classes)
        else:
            import timm

            family = {"ViT-S/16": "vit_small_patch16_224", "ViT-B/16": "vit_base_patch16_224"}[self.name]
            network = timm.create_model(family, num_classes=self.num_classes)
        return Algorithm(network.to(device)).eval()

    def data(self, algorithm: Algorithm, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Random inputs that lie on the device, labelled so that accuracy is about `ACCURACY`.

        Coverage counts correct samples only: at chance there would be next to nothing to count.
        """
        cuda = device.type == "cuda"
        size, number = (64, 10 * self.batches) if cuda else (self.batch, self.batches)
        generator = torch.Generator().manual_seed(1)
        found = []
        with torch.no_grad(), warnings.catch_warnings():
            for _ in range(number):
                x = torch.randn(size, *self.shape, generator=generator).to(device)
                wrong = (torch.rand(size, generator=generator) >= ACCURACY).to(device)
                found.append((x, (algorithm.predict(x).argmax(dim=1) + wrong) % self.num_classes))
        return found


def _resnet(name: str, batch: int, batches: int) -> Workload:
    stages = tuple(f"network.layer{stage}" for stage in range(1, 5))
    return Workload(name, (3, 224, 224), 7, "network.avgpool", stages, batch, batches)


def _vit(name: str, batch: int, batches: int) -> Workload:
    stages = tuple(f"network.blocks.{block}" for block in (2, 5, 8, 11))
    return Workload(name, (3, 224, 224), 7, "network.fc_norm", stages, batch, batches)


_MNIST_STAGES = tuple(f"network.bn{number}" for number in range(4))
WORKLOADS = (
    Workload("MNIST_CNN", (2, 28, 28), 10, "network.avgpool", _MNIST_STAGES, batch=64, batches=6),
    _resnet("ResNet-18", batch=8, batches=3),
    _resnet("ResNet-50", batch=4, batches=3),
    _vit("ViT-S/16", batch=4, batches=3),
    _vit("ViT-B/16", batch=2, batches=3),
)
