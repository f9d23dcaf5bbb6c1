"""The contrastive training of CLIP and SigLIP: which images form a batch, its loss, and the steps.

For b images with unit embeddings v_i, the texts that describe them with t_i, and s = exp(logit_scale)

    l_ij = s <v_i, t_j>,    loss = - mean_i (log softmax_j l_ij [j = i] + log softmax_i l_ij [i = j]) / 2

(Radford et al., arXiv 2103.00020). All texts of a batch differ, so that no text stands against itself. A text that is
true of another image of the batch as well, or of which that is not known, is left out of that image's sums.

The defaults are the recipe of Pearson et al. (arXiv 2508.20783): 8 distinct classes a batch, Adam with 1e-5 and a
cosine decay, 30 epochs, the last weights. The random numbers of a step are a function of (seed, step), so that a
resumed training ends as one that was not interrupted.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdc.support import InputError, Int64, Mask, checks

if TYPE_CHECKING:
    from torch import Tensor

    from fastdc.sources import ImageTextModel

_MAX_SCALE = math.log(100)  # of logit_scale, as in CLIP's own training


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveRecipe:
    """How a CLIP is trained; the defaults fine-tune a published one.

    Attributes:
        epochs: Number of passes over the images.
        batch: Largest number of images of a batch, all of different texts.
        lr: Highest learning rate.
        warmup: Number of steps in which the rate rises; it then falls along half a cosine to 0.
        weight_decay: Weight decay; 0 makes AdamW the Adam of the paper.
        clip: Largest norm of the gradient; None: any.
        seed: Seed of the order, and of what else is random.
    """

    epochs: int = 30
    batch: int = 8
    lr: float = 1e-5
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch", 2), ("warmup", 0)):
            checks.whole(name, getattr(self, name), low=low)
        checks.positive("lr", self.lr)
        checks.positive("weight_decay", self.weight_decay, zero=True)
        if self.clip is not None:
            checks.positive("clip", self.clip)
        checks.seed(self.seed)


class DistinctBatches:
    """Batches of images whose classes all differ; an epoch shows every image once.

    A batch takes its classes at random, in proportion to the images that they have left, so that all classes end
    together; near the end of an epoch, where fewer classes are left, batches are smaller. What is left of one class
    alone is not shown, because it would stand against nothing.

    Args:
        labels: int64 (n,), the class of each image.
        batch: Largest number of images of a batch.
        seed: Seed.

    Raises:
        InputError: There are fewer than two classes.
    """

    def __init__(self, labels: Int64, batch: int, seed: int) -> None:
        self._members = [np.flatnonzero(labels == k) for k in np.unique(labels)]
        self._batch, self._seed = batch, seed
        if len(self._members) < 2:
            raise InputError(f"expected images of two classes or more, got {len(self._members)}")

    def epoch(self, number: int) -> list[Int64]:
        """The batches of an epoch, int64 (b,) each."""
        rng = np.random.default_rng([self._seed, number])
        shuffled = [rng.permutation(members) for members in self._members]
        left = np.array([len(members) for members in shuffled])
        batches = []
        while np.count_nonzero(left) > 1:
            size = min(self._batch, int(np.count_nonzero(left)))
            # The largest b of u^(1 / left) are a sample in proportion to `left` (Efraimidis & Spirakis, 2006).
            keys = np.where(left > 0, np.log(rng.random(len(left))) / np.maximum(left, 1), -np.inf)
            chosen = np.argsort(-keys)[:size]
            batches.append(np.array([shuffled[k][left[k] - 1] for k in chosen], np.int64))
            left[chosen] -= 1
        return batches


def contrastive_loss(logits: "Tensor", left_out: "Tensor | None" = None) -> "Tensor":
    """The symmetric loss of the module's formula.

    Args:
        logits: (b, b), image i and text j; text i describes image i.
        left_out: bool (b, b), whether text j is no wrong text of image i; the diagonal is ignored.

    Returns:
        A number, of the type of `logits`.

    Example:
        >>> import torch
        >>> from fastdc.train import contrastive_loss
        >>> round(float(contrastive_loss(torch.zeros(4, 4))), 4)
        1.3863
    """
    import torch

    if left_out is not None:
        other = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(left_out & other, -math.inf)
    right = torch.arange(len(logits), device=logits.device)
    loss = torch.nn.functional.cross_entropy
    return (loss(logits, right) + loss(logits.T, right)) / 2


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionedImages:
    """Images with the texts that describe them.

    Attributes:
        pixels: From the numbers of images, int64 (b,), to the network's inputs.
        labels: int64 (n,), the text of each image, a position in `texts`.
        texts: P texts.
        left_out: bool (n, P), whether a text is no wrong text of an image, besides its own; None: all others are wrong.
    """

    pixels: "Callable[[Int64], Mapping[str, Tensor]]"
    labels: Int64
    texts: tuple[str, ...]
    left_out: Mask | None = None


class ContrastiveTraining:
    """The steps of a training; the model's network is trained in place.

    Args:
        model: The model; its network is in float32.
        data: Images and texts.
        recipe: The recipe.

    Attributes:
        step: Number of steps done.
        steps: Number of all steps.
        optimizer: AdamW.
    """

    def __init__(self, model: "ImageTextModel", data: CaptionedImages, recipe: ContrastiveRecipe) -> None:
        import torch

        self._model, self._data, self._recipe = model, data, recipe
        self._order = DistinctBatches(data.labels, recipe.batch, recipe.seed)
        self._epochs = [len(self._order.epoch(number)) for number in range(recipe.epochs)]
        self.step, self.steps = 0, sum(self._epochs)
        self._parameters = list(model.network.requires_grad_(True).parameters())
        self.optimizer = torch.optim.AdamW(self._parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        self._tokens = model.tokens(data.texts)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rising = min((step + 1) / (self._recipe.warmup + 1), 1.0)
        return self._recipe.lr * rising * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def run(self) -> Iterator[tuple[int, float]]:
        """Trains on from :attr:`step`; yields the epoch, from 1, and the loss of each step, when it has been taken.

        Raises:
            InputError: The loss is no longer a number.
        """
        done = 0
        for number, count in enumerate(self._epochs):
            if self.step < done + count:
                for batch in self._order.epoch(number)[self.step - done :]:
                    yield number + 1, self._advance(batch)
            done += count

    def _advance(self, batch: Int64) -> float:
        """One step; returns its loss."""
        import torch

        recipe, network = self._recipe, self._model.network.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([recipe.seed, 1, self.step]).generate_state(1)[0]))
            loss = self._loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(f"the loss is {value} at step {self.step}: expected a smaller lr than {recipe.lr:g}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, recipe.clip)
        self.optimizer.param_groups[0]["lr"] = self.rate(self.step)
        self.optimizer.step()
        scale: Any = network.logit_scale
        with torch.no_grad():
            scale.clamp_(max=_MAX_SCALE)
        self.step += 1
        network.eval()
        return value

    def _loss(self, batch: Int64) -> "Tensor":
        import torch

        model, labels = self._model, self._data.labels[batch]
        images = model.image_features(dict(self._data.pixels(batch)))
        texts = model.text_features({name: values[labels] for name, values in self._tokens.items()})
        left_out = None
        if self._data.left_out is not None:
            left_out = torch.from_numpy(self._data.left_out[batch][:, labels]).to(images.device)
        scale: Any = model.network.logit_scale
        return contrastive_loss(scale.exp() * images @ texts.T, left_out)
