"""ViLT as a matcher: one network reads an image and a text together, and its head for retrieval says how well they fit.

Every pair of an image and a candidate is one evaluation, so texts cannot be encoded beforehand. Pairs of consecutive
images form batches, as long as their images have one size once they are prepared; so no image is padded, and what a
pair gets does not depend on its neighbours. transformers shuffles the patches of an image, which changes its scores
by rounding alone, and a config with ``max_image_length`` drops some at random; torch is seeded for every batch, and its
state put back. Source: Kim et al., arXiv 2102.03334.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdc.matching.clip_matcher import finite, model_facts
from fastdc.matching.collecting import collect, different
from fastdc.matching.matched import Matched, OnFinished, OnMatched
from fastdc.matching.pictures import Pictures
from fastdc.matching.trials import Trials
from fastdc.support import Float64, Int64, checks


@dataclass(frozen=True, eq=False)
class _Asked:
    """An image of a batch.

    Attributes:
        inputs: The network's inputs for it.
        texts: Its different texts, positions in those of the trials.
        places: The place of each of its candidates among them.
    """

    inputs: dict[str, Any]
    texts: Int64
    places: Int64


class ViltMatcher:
    """ViltForImageAndTextRetrieval from a folder of transformers.

    Args:
        folder: The folder, with config.json, model.safetensors, tokenizer and image processor; nothing is fetched, and
            nothing in it is executed.
        device: "cpu", "cuda", "cuda:N", or "auto": the first CUDA device, if there is one.
        batch: Number of pairs that are evaluated at a time.
        threads: Number of CPU threads; None: torch's choice.
        name: Name in tables; None: that of the folder.

    Raises:
        InputError: There is no such folder, or an option cannot be used.
        BundleError: The folder holds something else, or is incomplete or damaged.
        BackendError: There is no such device.
        MissingDependencyError: torch or transformers is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        device: str = "auto",
        batch: int = 64,
        threads: int | None = None,
        name: str | None = None,
    ) -> None:
        self._batch = checks.whole("batch", batch)
        self._threads = None if threads is None else checks.whole("threads", threads)
        from fastdc.sources import JOINT, open_image_text

        self._model = open_image_text(os.fspath(folder), JOINT, device=device)
        self._name = self._model.name if name is None else name

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self._name

    @property
    def facts(self) -> dict[str, Any]:
        """What reproduces the scores."""
        return model_facts(self._model)

    def match(self, trials: Trials, progress: OnMatched | None = None, keep: OnFinished | None = None) -> Matched:
        """Scores the candidates of every image.

        Args:
            trials: Images and their candidate texts.
            progress: Called after each image.
            keep: Called after each image with what gives the answers so far.

        Raises:
            InputError: An image cannot be used; raised before any work starts.
            BackendError: The network cannot be computed.
            Interrupted: Ctrl-C; its ``result`` holds the images that were finished, or is None.

        Warns:
            PromptWarning: A text is longer than the network reads, or the same to it as another one.
        """
        pictures = Pictures(trials)
        self._model.check_texts(trials.texts)
        return collect(self.name, trials, self._scored(trials, pictures), self.facts, progress, keep)

    def _scored(self, trials: Trials, pictures: Pictures) -> Iterator[Float64]:
        for batch in self._batches(trials, pictures):
            pairs = [(place, text) for place, one in enumerate(batch) for text in one.texts.tolist()]
            scores = self._of_pairs(trials, [one.inputs for one in batch], pairs)
            ends = np.cumsum([len(one.texts) for one in batch])
            for one, end in zip(batch, ends.tolist(), strict=True):
                yield scores[end - len(one.texts) : end][one.places]

    def _batches(self, trials: Trials, pictures: Pictures) -> Iterator[list[_Asked]]:
        """Consecutive images of one size and, but for the first, with room for their pairs."""
        batch: list[_Asked] = []
        pairs = 0
        firsts = self._model.firsts(trials.texts) if len(trials) else np.zeros(0, np.int64)
        for i, (texts, places) in enumerate(different(trials, firsts)):
            inputs, more = self._model.pixels([pictures[i]]), len(texts)
            other = batch and batch[0].inputs["pixel_values"].shape != inputs["pixel_values"].shape
            if batch and (other or pairs + more > self._batch):
                yield batch
                batch, pairs = [], 0
            batch.append(_Asked(inputs, texts, places))
            pairs += more
        if batch:
            yield batch

    def _of_pairs(self, trials: Trials, images: list[dict[str, Any]], pairs: list[tuple[int, Any]]) -> Float64:
        """The scores of pairs of an image and a text."""
        import torch

        from fastdc.sources import computing

        model, found = self._model, list[Float64]()
        joined = {name: torch.cat([one[name] for one in images]) for name in images[0]}
        devices = [model.device] if model.device.type == "cuda" else []
        for start in range(0, len(pairs), self._batch):
            part = pairs[start : start + self._batch]
            places = torch.tensor([place for place, _ in part], device=model.device)
            with computing(model.name, self._threads), torch.random.fork_rng(devices=devices):
                torch.manual_seed(0)
                tokens = model.tokens([trials.texts[text] for _, text in part])
                network: Any = model.network
                logits = network(**tokens, **{name: values[places] for name, values in joined.items()}).logits
            found.append(finite(model.name, logits[:, 0].double().cpu().numpy()))
        return np.concatenate(found)
