"""The text encoder of a bundle in ONNX Runtime: prompts to condition tables, without torch or transformers.

A bundle that has one can be asked about other classes than those that it was exported with: the tables of the new
prompts take the place of its own, and nothing else changes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.onnx.graphs import open_graph, run, tables_of, values
from fastdc.backends.protocol import one_line
from fastdc.bundle import TEXT, TOKENIZERS, Bundle, Prompts
from fastdc.support import BundleError, InputError, require

_BATCH = 64


class OnnxTextEncoder:
    """Tokenizers and text encoder of a bundle.

    Args:
        bundle: A bundle with ``text.onnx``.
        threads: Inside the session.

    Raises:
        InputError: The bundle has no text encoder.
        MissingDependencyError: tokenizers or onnxruntime is not installed.
        BundleError: A tokenizer or the graph is corrupt.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        if TEXT not in bundle.files:
            raise InputError(f"model {bundle.name} has no text encoder: export it again with its prompts")
        tokenizers = require("tokenizers", extra="text")
        self._session: Any = open_graph(bundle, TEXT, threads=threads)
        self._inputs = [name for name, _, _ in values(self._session.get_inputs())]
        self._outputs = [name for name, _, _ in values(self._session.get_outputs())]
        self._tokenizers: dict[str, Any] = {}
        for index, file in enumerate(name for name in TOKENIZERS if name in bundle.files):
            name = "input_ids" if index == 0 else f"input_ids_{index + 1}"
            try:
                self._tokenizers[name] = tokenizers.Tokenizer.from_str(bundle.read(file).decode())
            except Exception as error:  # the library raises bare exceptions
                raise BundleError(f"{bundle.path / file} is no tokenizer: {one_line(error)}") from None
        if sorted(self._tokenizers) != sorted(self._inputs):
            raise BundleError(
                f"{bundle.path / TEXT} takes {', '.join(self._inputs)}: expected a tokenizer for each, "
                f"got {', '.join(self._tokenizers) or 'none'}"
            )

    def encode(self, texts: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Condition tables, float32 (len(texts), ...) by name; each text is encoded once.

        Raises:
            BackendError: ONNX Runtime fails.
        """
        once = list(dict.fromkeys(texts))
        parts = []
        for start in range(0, len(once), _BATCH):
            some = once[start : start + _BATCH]
            feeds = {
                name: np.array([found.ids for found in tokenizer.encode_batch(some)], np.int64)
                for name, tokenizer in self._tokenizers.items()
            }
            parts.append(run(self._session, feeds, TEXT))
        place = {text: row for row, text in enumerate(once)}
        order = [place[text] for text in texts]
        return {
            name: np.concatenate([part[index] for part in parts])[order].astype(np.float32)
            for index, name in enumerate(self._outputs)
        }


def with_prompts(bundle: Bundle, prompts: Prompts) -> Bundle:
    """A bundle that is asked about other classes, by the prompts that describe them; on disk nothing changes.

    Calibrations, and the temperature of the posterior, were found for the classes that the bundle was made with: the
    calibrations are left out, the temperature stays and is a guess.

    Args:
        bundle: A bundle with a text encoder.
        prompts: What describes each class.

    Raises:
        InputError: The bundle has no text encoder.
        MissingDependencyError: tokenizers or onnxruntime is not installed.
        BundleError: A tokenizer or the graph is corrupt.
    """
    tables = OnnxTextEncoder(bundle).encode(prompts.texts)
    null = bundle.model.null_class
    if null is not None:  # the empty prompt is not always the encoding of an empty text: it stays what it was
        own = tables_of(bundle)
        tables = {name: np.concatenate([table, own[name][null : null + 1]]) for name, table in tables.items()}
    # Results name the exact model by this: the file's digest, and that of the prompts in its place.
    asked = repr((bundle.model.identity, prompts.texts, prompts.class_of, prompts.class_names))
    model = replace(
        bundle.model,
        class_names=prompts.class_names,
        prompts=prompts.texts,
        class_of=prompts.class_of,
        null_class=None if null is None else len(prompts.texts),
        identity=hashlib.sha256(asked.encode()).hexdigest(),
        calibration=None,
        noised_calibrations=(),
    )
    return replace(bundle, model=model, tables=tables)
