"""CLIP and SigLIP as matchers: the cosine of an image's and a text's embedding, scaled as the network scales it.

    score = exp(logit_scale) <image, text> + logit_bias

which is ``logits_per_image`` of transformers; CLIP has no bias. Both towers are evaluated in float32 and their products
in float64. A text is encoded once, however many images it is a candidate of. Source: Radford et al., arXiv 2103.00020;
Zhai et al., arXiv 2303.15343 (SigLIP); Tschannen et al., arXiv 2502.14786 (SigLIP 2).
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastdc.matching.collecting import collect, different
from fastdc.matching.matched import Matched, OnFinished, OnMatched
from fastdc.matching.pictures import Pictures
from fastdc.matching.trials import Trials
from fastdc.support import BackendError, Float64, __version__, checks, version_of

TEXT_BATCH = 64  # texts that are encoded at a time


class ClipMatcher:
    """CLIP, SigLIP or SigLIP 2 from a folder of transformers.

    Args:
        folder: The folder, with config.json, model.safetensors, tokenizer and image processor; nothing is fetched, and
            nothing in it is executed.
        device: "cpu", "cuda", "cuda:N", or "auto": the first CUDA device, if there is one.
        batch: Number of images that are evaluated at a time.
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
        batch: int = 32,
        threads: int | None = None,
        name: str | None = None,
    ) -> None:
        self._batch = checks.whole("batch", batch)
        self._threads = None if threads is None else checks.whole("threads", threads)
        from fastdc.sources import DUAL, open_image_text

        self._model = open_image_text(os.fspath(folder), DUAL, device=device)
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

    def embed(self, texts: Any) -> Float64:
        """Embeddings of texts, each of norm 1.

        Args:
            texts: n texts.

        Returns:
            float64 (n, d).

        Raises:
            BackendError: The network cannot be computed.
        """
        from fastdc.sources import computing

        model, rows = self._model, list[Float64]()
        for start in range(0, len(texts), TEXT_BATCH):
            with computing(model.name, self._threads):
                found = model.text_features(model.tokens(texts[start : start + TEXT_BATCH]))
            rows.append(finite(model.name, found.double().cpu().numpy()))
        return np.concatenate(rows) if rows else np.empty((0, 0))

    def _scored(self, trials: Trials, pictures: Pictures) -> Iterator[Float64]:
        from fastdc.sources import computing

        model: Any = self._model
        texts = self.embed(trials.texts)
        scale = float(model.network.logit_scale.detach().double().exp())
        bias = float(getattr(model.network, "logit_bias", 0.0))
        asked = different(trials, model.firsts(trials.texts) if len(trials) else np.zeros(0, np.int64))
        last, some = None, texts
        for start in range(0, len(trials), self._batch):
            rows = range(start, min(start + self._batch, len(trials)))
            with computing(model.name, self._threads):
                found = model.image_features(model.pixels([pictures[i] for i in rows]))
            images = finite(model.name, found.double().cpu().numpy())
            for image, (own, places) in zip(images, asked, strict=False):
                if own is not last:
                    last, some = own, texts[own]
                yield (scale * (some @ image) + bias)[places]


def finite(name: str, values: Float64) -> Float64:
    """The values of a network, which must be numbers.

    Raises:
        BackendError: They are not.
    """
    if not np.isfinite(values).all():
        raise BackendError(f"{name} cannot be computed: it gives NaN or infinity")
    return values


def model_facts(model: Any) -> dict[str, Any]:
    """What reproduces the scores of an :class:`fastdc.sources.ImageTextModel`."""
    return {
        "model": model.name,
        "kind": model.kind,
        "sha256": model.sha256,
        "device": str(model.device),
        "fastdc": __version__,
        **{name: version_of(name) for name in ("transformers", "torch")},
    }
