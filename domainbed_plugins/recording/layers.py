"""The layers that NAC-ME's authors measure at, in each of DomainBed's networks.

Source: ``get_intr_name`` in ``benchmark_notes/instr_state.py`` of the authors' code, which goes by the names of
data set, network and algorithm. Here the network that an algorithm predicts with decides, so that forks' own
algorithms are served as well. Maps and tokens are summed over positions, activation and gradient each, as theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from domainbed_plugins.recording.options import AUTHORS, PENULTIMATE

#: Where algorithms keep the featurizer that they predict with; the first that one has counts. Averaged weights
#: come before those that are trained, as the authors' ``network_sma`` does for SMA.
FEATURIZERS = ("network_sma.0", "featurizer", "network_f", "featurizer_label", "network.net.0")


@dataclass(frozen=True)
class Row:
    """A network, and where the authors measure it.

    Attributes
    ----------
    network : str
        In words.
    layer : str
        Path inside the featurizer.
    mark : str
        Path of a part that tells the network from others with a layer of that name.
    """

    network: str
    layer: str
    mark: str = ""


#: The first row whose layer and mark a featurizer has is the one for it.
TABLE = (
    Row("MNIST_CNN (all MNIST data sets): the map before the mean over positions", "bn3", "conv4"),
    Row("CLIP's ViT, of OpenAI's package", "network.transformer.resblocks.11.mlp.gelu"),
    Row("ViT, DINOv2 and timm's: all tokens", "network.blocks.11.norm2"),
    Row("SWAG's RegNetY", "network.head", "network.trunk_output"),
    Row("torchvision's ResNets", "network.avgpool", "network.layer4"),
    Row("timm's ResNets (AugMix, ResNet-10), by its name there", "network.global_pool", "network.layer4"),
)


def authors_layers(algorithm: nn.Module) -> list[str] | None:
    """Find the authors' layers in an algorithm.

    Parameters
    ----------
    algorithm : nn.Module
        A DomainBed algorithm.

    Returns
    -------
    list of str or None
        Paths in the algorithm. None for a network that the authors did not measure, such as an MLP.
    """
    parts = dict(algorithm.named_modules(remove_duplicate=False))
    place = next((name for name in FEATURIZERS if name in parts), None)
    # a network of timm that was chosen by name: see `domainbed_plugins.backends.networks`
    inside = "network.body" if f"{place}.network.body" in parts else "network"
    for row in TABLE:
        layer, mark = (part.replace("network", inside, 1) for part in (row.layer, row.mark))
        if f"{place}.{layer}" in parts and (not mark or f"{place}.{mark}" in parts):
            return [f"{place}.{layer}"]
    return None


def resolve(asked: str | Sequence[str] | None, algorithm: nn.Module) -> list[str] | None:
    """Turn what was asked for into layers of an algorithm.

    Parameters
    ----------
    asked : {"authors", "penultimate"} or sequence of str, optional
        None: ``"authors"``.
    algorithm : nn.Module

    Returns
    -------
    list of str or None
        None: what feeds the last linear layer. So it is, too, for a network that the authors did not measure; the
        record says which layer was taken.
    """
    if asked is None or asked == AUTHORS:
        return authors_layers(algorithm)
    return None if asked == PENULTIMATE else list(asked)
