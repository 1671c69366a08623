"""Recording with each of DomainBed's networks, built with random weights: heads are found, gradients are exact."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from domainbed_plugins.runs.checkpoints import build_algorithm, load_weights, without_pretrained_weights
from nacme import Recorder, kl_gradients
from nacme.settings import CoverageSettings
from nacme.taps import Taps, untouched

pytestmark = [pytest.mark.domainbed, pytest.mark.filterwarnings("ignore")]

CLASSES, DOMAINS = 5, 2


class SmallViT(nn.Module):
    """Stands in for DINOv2, whose code has to be downloaded: the method that DomainBed calls, and its width."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 768, 56, stride=56)
        self.token = nn.Parameter(torch.randn(1, 1, 768))
        layer = nn.TransformerEncoderLayer(768, 4, 64, batch_first=True)
        self.blocks = nn.ModuleList(nn.TransformerEncoder(layer, 1) for _ in range(4))

    def get_intermediate_layers(self, x, n, return_class_token):
        assert (n, return_class_token) == (4, True)
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1)
        outputs = []
        for block in self.blocks:
            tokens = block(tokens)
            outputs.append((tokens[:, 1:], tokens[:, 0]))
        return outputs


RESNETS = {"vit": False, "freeze_bn": True, "resnet_dropout": 0.1, "resnet50_augmix": False}
DINO = {"vit": True, "dinov2": True, "vit_dropout": 0.1, "vit_attn_tune": True}
NETWORKS = {
    "MLP": ((12,), {"mlp_width": 16, "mlp_depth": 3, "mlp_dropout": 0.1}, 16),
    "MNIST_CNN": ((1, 28, 28), {}, 128),
    "Wide_ResNet": ((3, 32, 32), {}, 128),
    "ResNet-18": ((3, 224, 224), {**RESNETS, "resnet18": True}, 512),
    "ResNet-50": ((3, 224, 224), {**RESNETS, "resnet18": False}, 2048),
    "ResNet-50 augmix": ((3, 224, 224), {**RESNETS, "resnet18": False, "resnet50_augmix": True}, 2048),
    "DinoV2": ((3, 224, 224), DINO, 5 * 768),
}


@pytest.fixture
def no_downloads(domainbed, monkeypatch):
    """Fail on any download; DINOv2's code is replaced."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"download of {args}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "load", lambda repository, name, pretrained: SmallViT())
    return domainbed


@pytest.mark.slow
@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_closed_form_equals_autograd(name, nonlinear, no_downloads):
    shape, hparams, width = NETWORKS[name]
    hparams = {**hparams, "lr": 1e-3, "weight_decay": 0.0, "nonlinear_classifier": nonlinear}
    torch.manual_seed(0)
    with without_pretrained_weights():
        algorithm = no_downloads.algorithms.get_algorithm_class("ERM")(shape, CLASSES, DOMAINS, hparams)
    batches = [(torch.rand(3, *shape), torch.randint(CLASSES, (3,))) for _ in range(2)]
    head = "classifier.4" if nonlinear else "classifier"
    features = width // 4 if nonlinear else width

    with untouched(algorithm), Taps(algorithm) as taps:
        readings = [taps.read(x) for x, _ in batches]
        assert taps._head is algorithm.get_submodule(head)
    (layer,) = readings[0].activations
    assert layer.endswith(":input")

    # the reference: the network cut at the head, and its whole graph
    with untouched(algorithm):
        for (x, _), reading in zip(batches, readings):
            below = algorithm.featurizer(x)
            below = algorithm.classifier[:-1](below) if nonlinear else below
            below = below.detach().requires_grad_()
            last = algorithm.get_submodule(head)
            (gradient,) = kl_gradients(F.linear(below, last.weight, last.bias), [below])
            assert reading.activations[layer].shape == (3, features)
            torch.testing.assert_close(reading.activations[layer], below.detach(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(reading.gradients[layer], gradient, rtol=1e-4, atol=1e-6)

    settings = CoverageSettings(1.0, 10, 2, correct_only=False)
    record = Recorder(algorithm, {"env0_out": batches}, settings=settings).record()
    assert 0 < record["nac_me"] <= 1
    assert record["nac"]["num_counted"] == 6


def test_pretrained_weights_are_asked_for_again_afterwards(domainbed):
    import torchvision.models

    before = torchvision.models.resnet18, torchvision.models.resnet50, torch.hub.load
    with contextlib.suppress(ZeroDivisionError), without_pretrained_weights():
        assert torchvision.models.resnet18 is not before[0]
        1 / 0  # noqa: B018
    assert before == (torchvision.models.resnet18, torchvision.models.resnet50, torch.hub.load)


@pytest.mark.slow
def test_the_scorer_builds_them_without_downloads(no_downloads):
    shape, hparams, _ = NETWORKS["ResNet-18"]
    hparams = {**hparams, "lr": 1e-3, "weight_decay": 0.0, "nonlinear_classifier": False}
    first, second = (build_algorithm(no_downloads, "ERM", shape, CLASSES, DOMAINS, hparams) for _ in range(2))
    load_weights(second, first.state_dict(), "model.pkl")
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
