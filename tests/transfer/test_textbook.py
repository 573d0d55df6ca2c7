"""The default recipe against what a user would run instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from batchnst import Recipe, stylize
from batchnst.transfer.weights import Weights
from tests import oracles

SIZE = 256
STYLE_LAYERS = [f"relu{block}_1" for block in range(1, 6)]


def textbook(layers: torch.nn.Sequential, content: Path, style: Path, steps: int) -> Tensor:
    """Gatys et al. as everybody writes it: one pair, fp32, one scale, torch's L-BFGS, clamped at the end."""

    def features(picture: Tensor) -> tuple[Tensor, list[Tensor]]:
        found = oracles.relu_features(layers, picture)
        flat = [found[name].flatten(2)[0] for name in STYLE_LAYERS]
        return found["relu4_2"], [f @ f.T / f.numel() for f in flat]

    pictures = [torch.from_numpy(oracles.fitted(path, SIZE)).permute(2, 0, 1)[None] for path in (content, style)]
    with torch.no_grad():
        target, grams = features(pictures[0])[0], features(pictures[1])[1]
    x = pictures[0].clone().contiguous().requires_grad_()
    optimizer = torch.optim.LBFGS([x], max_iter=steps, max_eval=steps, tolerance_change=0, tolerance_grad=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        found, own = features(x)
        style_loss = torch.stack([(a - b).square().mean() for a, b in zip(own, grams, strict=True)]).sum()
        variation = x.diff(dim=-1).abs().sum() + x.diff(dim=-2).abs().sum()
        loss = 1e-4 * (5 * (found - target).square().mean() + 100 * style_loss + 1e-3 * variation)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return x.detach().clamp(0, 255)


@pytest.mark.slow
def test_the_default_recipe_ends_far_below_500_textbook_steps(images: Path, weights: Weights, tmp_path: Path) -> None:
    content, style = images / "astronaut.png", images / "swirls.png"
    layers = oracles.torchvision_vgg19(weights)
    theirs = textbook(layers, content, style, 500)[0].permute(1, 2, 0).round().byte().numpy()
    Image.fromarray(theirs).save(tmp_path / "theirs.png")
    stylize(content, style, Recipe(size=SIZE)).picture.save(tmp_path / "ours.png")
    losses = {
        name: oracles.neural_style_loss(layers, tmp_path / f"{name}.png", content, style, SIZE)
        for name in ("theirs", "ours")
    }
    assert losses["ours"] < 0.8 * losses["theirs"], losses
