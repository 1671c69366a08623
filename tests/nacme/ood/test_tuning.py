"""Pseudo-outliers, and the search on them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nacme.errors import ConfigError
from nacme.ood.outliers import pseudo_outliers

pytest.importorskip("pytorch_ood")

from nacme.ood import NACUE, NAP, LINe, tune


@pytest.mark.parametrize("kind", ["mix", "rotate", "jigsaw", "noise"])
@pytest.mark.parametrize("shape", [(8, 3, 8, 8), (8, 1, 9, 14), (0, 3, 8, 8)])
def test_outliers_are_new_images_of_the_same_shape(kind, shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    made = pseudo_outliers(images, kind, torch.Generator().manual_seed(1))
    assert made.shape == images.shape
    assert torch.equal(images, before)
    assert torch.equal(made, pseudo_outliers(images, kind, torch.Generator().manual_seed(1)))
    assert (made != images).flatten(1).any(dim=1).all()
    if kind in ("rotate", "jigsaw"):  # nothing but places changes
        torch.testing.assert_close(made.flatten(2).sort().values, images.flatten(2).sort().values)


def test_jigsaw_moves_whole_patches():
    images = torch.arange(16).view(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3).float()
    made = pseudo_outliers(images, "jigsaw", torch.Generator().manual_seed(0))
    blocks = made.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert (blocks == blocks[..., :1]).all()


def test_outliers_say_what_is_wrong():
    with pytest.raises(ConfigError, match="did you mean 'rotate'"):
        pseudo_outliers(torch.rand(1, 1, 4, 4), "rotated")
    with pytest.raises(ConfigError, match="too small for a 4 x 4 jigsaw"):
        pseudo_outliers(torch.rand(1, 1, 3, 3), "jigsaw")
    with pytest.raises(ConfigError, match=r"must be \[B, C, H, W\]"):
        pseudo_outliers(torch.rand(2, 5))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 2)
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return self.fc(self.pool(self.conv(x).relu()).flatten(1))


def loaders():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 2
    images = 0.2 * torch.rand(40, 1, 8, 8, generator=generator)
    images[y == 0, :, :4] += 1  # light above, or light on the left
    images[y == 1, :, :, :4] += 1
    return [(images[:20], y[:20])], [(images[20:], y[20:])]


@pytest.mark.parametrize("kind", [NACUE, LINe, NAP])
def test_search_keeps_the_best_and_runs_the_network_once(kind):
    torch.manual_seed(0)
    model = Counting()
    fit, validation = loaders()
    detector = kind(model)
    space = {**kind.hyperparameter_space, **({"fill": [2, 5]} if kind is NACUE else {})}
    found = tune(detector, fit, validation, space)
    assert model.seen <= 20 + 20 + 20 + 1
    assert found.auroc == max(auroc for _, auroc in found.tried)
    assert len(found.tried) == len({tuple(one.values()) for one, _ in found.tried}) > 1
    assert detector.get_hyperparameters() == found.settings
    again = kind(model).set_hyperparameters(**found.settings).fit(fit)
    torch.testing.assert_close(detector.predict(validation[0][0]), again.predict(validation[0][0]))
    assert tune(kind(model), fit, validation, space).tried == found.tried


def test_search_says_what_is_wrong():
    fit, validation = loaders()
    with pytest.raises(ConfigError, match="no hyper-parameter 'alhpa'; did you mean 'alpha'"):
        tune(NACUE(Counting()), fit, validation, {"alhpa": [1]})
    with pytest.raises(ConfigError, match="at least one value"):
        tune(NACUE(Counting()), fit, validation, {"alpha": []})
