"""A convolution network on scikit-learn's handwritten digits: batch norm, a residual block, depthwise convolutions.

There are 1,797 images. Half of them, each class in proportion, train a network and calibrate its quantisation, the
other half judges; then the other way round, and all that for several seeds, so that a tenth of a point is several
images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.nn import functional

Progress = Callable[[str, float], None]
Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Config:
    """How much is trained."""

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 700
    batch: int = 64
    rate: float = 4e-3


@dataclass(frozen=True)
class Split:
    """Images f32[N,1,8,8] and labels i64[N], to train on and held out."""

    seed: int
    fold: int
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    @property
    def name(self) -> str:
        return f"seed {self.seed}, half {self.fold + 1}"


def splits(seeds: tuple[int, ...]) -> list[Split]:
    """Both halves of the images for every seed."""
    digits = load_digits()
    images = (digits.images.astype(np.float32) / 8 - 1)[:, None]
    labels = digits.target.astype(np.int64)
    found = []
    for seed in seeds:
        folds = StratifiedKFold(2, shuffle=True, random_state=seed).split(images, labels)
        for fold, (train, test) in enumerate(folds):
            found.append(Split(seed, fold, images[train], labels[train], images[test], labels[test]))
    return found


# The network --------------------------------------------------------------------------------------


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two convolutions beside a shortcut: f32[B,C,H,W] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _conv(channels, channels, 3), _conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


class Separable(nn.Module):
    """Widens, filters each channel on its own, mixes: f32[B,I,H,W] -> f32[B,O,H/stride,W/stride]."""

    def __init__(self, inputs: int, wide: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.widen = _conv(inputs, wide, 1)
        self.filter = _conv(wide, wide, 3, stride, groups=wide)
        self.mix = _conv(wide, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(functional.relu(self.filter(functional.relu(self.widen(x)))))


class Net(nn.Module):
    """Images to the logits of ten digits: f32[B,1,8,8] -> f32[B,10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(1, 16, 3)
        self.residual = Residual(16)
        self.down = Separable(16, 64, 32, stride=2)
        self.deep = Separable(32, 96, 32, stride=1)
        self.last = Separable(32, 96, 64, stride=2)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.residual(functional.relu(self.stem(x)))
        x = self.down(x)
        x = x + self.deep(x)
        x = functional.relu(self.last(x))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def train(net: Net, split: Split, config: Config, progress: Progress) -> None:
    """AdamW over the training half, each image moved by up to a pixel."""
    generator = torch.Generator().manual_seed(split.seed)
    optimizer = torch.optim.AdamW(net.parameters(), config.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.rate, config.steps)
    net.train()
    for step, (x, y) in zip(range(config.steps), batches(split, config.batch, generator)):
        loss = functional.cross_entropy(net(x), y, label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress(f"training the digits' network, {split.name}", (step + 1) / config.steps)
    net.eval()


def batches(split: Split, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled training images with their labels, without end: f32[size,1,8,8], i64[size]."""
    images, labels = torch.from_numpy(split.train_x), torch.from_numpy(split.train_y)
    while True:
        order = torch.randperm(len(images), generator=generator)
        for chosen in torch.split(order, size):
            if len(chosen) == size:
                yield moved(images[chosen], generator), labels[chosen]


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by -1, 0 or 1 pixels both ways; what comes in at the edge is background."""
    count, _, height, width = images.shape
    wide = functional.pad(images, (1, 1, 1, 1), value=-1.0)
    shifts = torch.randint(0, 3, (2, count, 1, 1), generator=generator)
    rows = torch.arange(height)[None, :, None] + shifts[0]
    columns = torch.arange(width)[None, None, :] + shifts[1]
    return wide[torch.arange(count)[:, None, None], 0, rows, columns][:, None]


def correct(predict: Predict, images: np.ndarray, labels: np.ndarray, batch: int) -> np.ndarray:
    """Which images are recognised: bool[N]. `predict` is given `batch` images at once, the last ones filled up."""
    made = np.empty(len(images), bool)
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
        made[start : start + batch] = predict(filled)[: len(part)].argmax(axis=1) == labels[start : start + batch]
    return made


# A hostile network --------------------------------------------------------------------------------


def disturb(net: Net, seed: int, octaves: float) -> None:
    """Scale channels wildly, in place, and undo it in the next layer: the same function, but outliers everywhere.

    A ReLU passes positive factors on: those of a channel's batch norm cancel against the inverse in the weights that
    read it. One tensor then holds channels that are 2^(2 * octaves) apart, and so do the weights of a depthwise layer.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in (net.down, net.deep, net.last):
            _scale(block.widen, block.filter, octaves, generator)
            _scale(block.filter, block.mix, octaves, generator)
        _scale(net.residual.first, net.residual.second, octaves, generator)


def _scale(before: nn.Sequential, after: nn.Sequential, octaves: float, generator: torch.Generator) -> None:
    norm, conv = before[1], after[0]
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d)
    factors = torch.exp2((torch.rand(norm.num_features, generator=generator) * 2 - 1) * octaves)
    norm.weight.mul_(factors)
    norm.bias.mul_(factors)
    conv.weight.div_(factors.view(-1, 1, 1, 1) if conv.groups > 1 else factors.view(1, -1, 1, 1))
