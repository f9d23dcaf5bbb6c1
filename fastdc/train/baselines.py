"""Discriminative classifiers to compare a diffusion classifier with, trained on the same prepared images.

    cnn            a small residual network, defined here (He et al., arXiv 1512.03385, without bottlenecks)
    timm:NAME      a network of the package timm with random initial weights, such as timm:resnet18

Both are trained with AdamW on the cross-entropy, with a one-cycle learning rate and with images shifted by up to an
eighth of their sides; the epoch with the highest accuracy on the validation images is kept (of equal ones, that of the
smallest loss), and a temperature is fitted to them, so that the probabilities are comparable too.
"""

import copy
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdc.support import Float64, InputError, Int64, MissingDependencyError, require, shown

CNN = "cnn"
TIMM = "timm:"
_WIDTHS = (32, 64, 128)
_SIDE = 32  # the first block sees images of at most this side; larger ones are halved before it
_RATES = {CNN: 3e-3, TIMM: 1e-3}
_STEPS = 400  # by default there are as many epochs as make this many steps, within these bounds:
_EPOCHS = (10, 100)
_BATCH = 64

Images = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Baseline:
    """A trained classifier.

    Attributes:
        name: The name that it was asked for by.
        network: torch module, images (n, c, h, w) in [-1, 1] -> logits (n, K).
        epoch: The epoch that was kept, from 1.
        epochs: Number of epochs of the training.
        val_accuracy: Share of the validation images that it answers rightly.
        temperature: Temperature of its probabilities, fitted to the validation images.
    """

    name: str
    network: Any
    epoch: int
    epochs: int
    val_accuracy: float
    temperature: float

    def probabilities(self, images: Images) -> Float64:
        """The probabilities of the classes, float64 (n, K).

        Args:
            images: (n, c, h, w), uint8 levels or float32 in [0, 1].
        """
        return _softmax(_logits(self.network, images) / self.temperature)

    def describe(self) -> dict[str, Any]:
        """What was trained and chosen, as plain values."""
        names = ("name", "epoch", "epochs", "val_accuracy", "temperature")
        return {name: getattr(self, name) for name in names}


def check_baseline(name: str) -> None:
    """Refuses a name that no baseline has, and one whose package is missing.

    Args:
        name: "cnn" or "timm:NAME".

    Raises:
        InputError: There is no such baseline.
        MissingDependencyError: torch or timm is not installed, or cannot be imported.

    Example:
        >>> from fastdc.train import check_baseline
        >>> check_baseline("cnn")
    """
    require("torch", extra="train")
    if name.startswith(TIMM):
        timm = _timm()
        if not timm.is_model(name.removeprefix(TIMM)):
            raise InputError(f"baseline {shown(name)}: timm has no such network; timm.list_models() lists them")
    elif name != CNN:
        raise InputError(f"baseline must be {CNN} or {TIMM}NAME, got {shown(name)}")


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        what = "timm" if error.name == "timm" else f"{error.name}, which timm imports,"
        hint = "it comes with the package timm"
        raise MissingDependencyError(f"{what} is needed here and not installed: {hint}") from None
    except Exception as error:  # a torchvision that is not torch's raises anything
        raise MissingDependencyError(f"timm cannot be imported here: {shown(error)}") from error


def train_baseline(
    name: str,
    images: NDArray[np.uint8],
    labels: Int64,
    *,
    val_images: NDArray[np.uint8],
    val_labels: Int64,
    n_classes: int,
    epochs: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Baseline:
    """Trains a classifier, and keeps the epoch that the validation images choose.

    torch's global random state stays as it was. One seed gives one network, on the CPU with as many threads.

    Args:
        name: "cnn" or "timm:NAME".
        images: Training images, uint8 (n, c, h, w).
        labels: int64 (n,), their classes.
        val_images: Images that choose the epoch and the temperature, uint8 (m, c, h, w).
        val_labels: int64 (m,), their classes.
        n_classes: K.
        epochs: Passes over the training images; None: about 400 steps, but 10 to 100 epochs.
        seed: Seed of the weights, the order and the shifts.
        threads: Number of CPU threads; None: as many as torch takes.
        progress: Called with the number of epochs done and of all, after each.

    Raises:
        InputError: There is no such baseline, there are too few images, or the network does not take their shape.
        MissingDependencyError: torch or timm is not installed.

    Example:
        >>> from fastdc.train import train_baseline
        >>> made = train_baseline("cnn", images[:15], labels[:15], val_images=images[15:], val_labels=labels[15:],
        ...                       n_classes=10, epochs=1)
        >>> made.probabilities(images).shape
        (20, 10)
    """
    check_baseline(name)
    torch = require("torch")
    if len(images) < 2 or not len(val_images):
        counts = f"{len(images)} and {len(val_images)}"
        raise InputError(f"baseline {name}: expected 2 training images or more and 1 to validate, got {counts}")
    epochs = _epochs_for(len(images)) if epochs is None else epochs
    with torch.random.fork_rng(devices=[]), _threads(threads):
        torch.manual_seed(seed)
        network = _network(name, images.shape[1:], n_classes)
        kept, best = None, (-1.0, 0.0, 0)
        for epoch in _epochs(network, images, labels, epochs, _RATES[CNN if name == CNN else TIMM]):
            found = (*_judged(_logits(network, val_images), val_labels), -epoch)
            if found > best or kept is None:
                kept, best = copy.deepcopy(network.state_dict()), found
            if progress is not None:
                progress(epoch, epochs)
        network.load_state_dict(kept)
    network = network.eval().requires_grad_(False)
    fitted = _temperature(_logits(network, val_images), val_labels)
    return Baseline(name, network, -best[2], epochs, best[0], fitted)


def _epochs_for(images: int) -> int:
    return min(max(_STEPS // -(-images // _BATCH), _EPOCHS[0]), _EPOCHS[1])


def _judged(logits: Float64, labels: Int64) -> tuple[float, float]:
    """Accuracy, and minus the loss: the larger, the better."""
    return float((logits.argmax(axis=1) == labels).mean()), -_loss(logits, labels, 1.0)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    torch = require("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _epochs(network: Any, images: NDArray[np.uint8], labels: Int64, epochs: int, rate: float) -> Iterator[int]:
    """Trains epoch by epoch; yields the number of each when it has ended."""
    torch = require("torch")
    samples, targets = _samples(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * -(-len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for epoch in range(1, epochs + 1):
        network.train()
        order = torch.randperm(len(images))
        for index in torch.split(order, _BATCH):
            if len(index) < 2:  # batch statistics of one image are none
                schedule.step()
                continue
            loss = torch.nn.functional.cross_entropy(network(_shifted(samples[index])), targets[index])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        yield epoch


def _shifted(samples: Any) -> Any:
    """Each image moved by up to an eighth of its sides; the edge is repeated."""
    torch = require("torch")
    rows, columns = (max(1, side // 8) for side in samples.shape[2:])
    padded = torch.nn.functional.pad(samples, (columns, columns, rows, rows), mode="replicate")
    height, width = samples.shape[2:]
    down = torch.randint(0, 2 * rows + 1, (len(samples),)).tolist()
    right = torch.randint(0, 2 * columns + 1, (len(samples),)).tolist()
    moved = [one[:, i : i + height, j : j + width] for one, i, j in zip(padded, down, right, strict=True)]
    return torch.stack(moved)


def _network(name: str, shape: tuple[int, ...], n_classes: int) -> Any:
    if name == CNN:
        return _residual(shape, n_classes)
    timm, given = _timm(), {"pretrained": False, "num_classes": n_classes, "in_chans": shape[0]}
    network = name.removeprefix(TIMM)
    torch = require("torch")
    try:
        try:
            made = timm.create_model(network, img_size=tuple(shape[1:]), **given)
        except TypeError:  # a network of convolutions takes images of any size, and has no such option
            made = timm.create_model(network, **given)
        with torch.no_grad():
            made.eval()(torch.zeros(1, *shape))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        size = "x".join(map(str, shape))
        raise InputError(f"baseline {name} cannot be used on images of {size}: {shown(error)}") from error
    return made


def _residual(shape: tuple[int, ...], n_classes: int) -> Any:
    """A stem, three residual blocks of 32, 64 and 128 channels, the mean over pixels, a linear layer."""
    nn = require("torch").nn

    class Block(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
                *(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)),
            )
            self.way = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

        def forward(self, x: Any) -> Any:
            return nn.functional.relu(self.body(x) + self.way(x))

    halvings = max(0, int(np.ceil(np.log2(max(shape[1:]) / _SIDE))))
    stem: list[Any] = []
    channels = shape[0]
    for stride in [2] * halvings or [1]:
        stem += [nn.Conv2d(channels, _WIDTHS[0], 3, stride, 1, bias=False), nn.BatchNorm2d(_WIDTHS[0]), nn.ReLU()]
        channels = _WIDTHS[0]
    blocks = [Block(a, b, 1 + (i > 0)) for i, (a, b) in enumerate(zip((_WIDTHS[0], *_WIDTHS), _WIDTHS, strict=False))]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_WIDTHS[-1], n_classes)]
    return nn.Sequential(*stem, *blocks, *pool)


def _samples(images: Images) -> Any:
    """Images in [-1, 1] as a torch tensor."""
    torch = require("torch")
    scale = 255 if images.dtype == np.uint8 else 1
    return torch.from_numpy(np.ascontiguousarray(images)).float() * (2 / scale) - 1


def _logits(network: Any, images: Images) -> Float64:
    torch = require("torch")
    network.eval()
    with torch.no_grad():
        parts = [network(_samples(images[i : i + 256])).double().numpy() for i in range(0, len(images), 256)]
    return np.concatenate(parts)


def _softmax(logits: Float64) -> Float64:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _loss(logits: Float64, labels: Int64, temperature: float) -> float:
    own = _softmax(logits / temperature)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, 1e-300)).mean())


def _temperature(logits: Float64, labels: Int64) -> float:
    """The temperature from 1/20 to 20 of the smallest loss."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda log: _loss(logits, labels, float(np.exp(log))), bounds=(-3, 3), method="bounded")
    return float(np.exp(found.x))
