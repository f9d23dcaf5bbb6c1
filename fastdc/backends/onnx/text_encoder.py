"""The text encoder of a bundle in ONNX Runtime: makes condition tables of prompts, without torch or transformers.

A bundle with a text encoder can be asked about other classes than the ones it was exported with: the tables of the new
prompts replace its own, and nothing else changes.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastdc.backends.condition_tables import condition_tables
from fastdc.backends.onnx.graphs import evaluate, open_graph, values
from fastdc.backends.prompt_tokens import PromptTokenizer, check_prompts
from fastdc.bundle import TEXT, TOKENIZERS, Bundle, Prompts, checked_tokenizer
from fastdc.support import BundleError, FastdcError, Float32, InputError, Int64, one_line, require

_BATCH = 64  # texts encoded at a time


class OnnxTextEncoder:
    """Tokenizers and text encoder of a bundle.

    Args:
        bundle: A bundle with ``text.onnx``.

    Raises:
        InputError: The bundle has no text encoder.
        MissingDependencyError: tokenizers or onnxruntime is not installed.
        BundleError: A tokenizer or the graph is corrupt.
    """

    def __init__(self, bundle: Bundle) -> None:
        if TEXT not in bundle.files:
            raise InputError(f"model {bundle.name} has no text encoder: export it again with its prompts")
        tokenizers = require("tokenizers", extra="text")
        self._bundle = bundle
        self._session: Any = open_graph(bundle, TEXT)
        self._inputs = [name for name, _, _ in values(self._session.get_inputs())]
        self._outputs = [name for name, _, _ in values(self._session.get_outputs())]
        self._tokenizers: dict[str, PromptTokenizer] = {}
        for index, file in enumerate(name for name in TOKENIZERS if name in bundle.files):
            name = "input_ids" if index == 0 else f"input_ids_{index + 1}"
            content = checked_tokenizer(bundle.read(file), bundle.path / file)
            with _as_bundle_errors(bundle):
                self._tokenizers[name] = PromptTokenizer(tokenizers.Tokenizer.from_str(content))
        if sorted(self._tokenizers) != sorted(self._inputs):
            raise BundleError(
                f"{bundle.path / TEXT} takes {', '.join(self._inputs)}: expected a tokenizer for each, "
                f"got {', '.join(self._tokenizers) or 'none'}"
            )

    def check(self, prompts: Prompts) -> None:
        """Refuses prompts of different classes that become the same tokens, and warns of what else is lost."""
        with _as_bundle_errors(self._bundle):
            check_prompts(prompts, tuple(self._tokenizers.values()))

    def firsts(self, texts: Sequence[str]) -> Int64:
        """See :func:`firsts_of_texts`."""
        with _as_bundle_errors(self._bundle):
            ids = [tokenizer.encode(texts)[0] for tokenizer in self._tokenizers.values()]
        seen: dict[bytes, int] = {}
        return np.array([seen.setdefault(row.tobytes(), i) for i, row in enumerate(np.hstack(ids))], np.int64)

    def encode(self, texts: Sequence[str]) -> dict[str, Float32]:
        """Condition tables by name, float32 (len(texts), ...); equal texts are encoded once.

        Raises:
            BackendError: ONNX Runtime fails.
            BundleError: A tokenizer fails.
        """
        once = list(dict.fromkeys(texts))
        parts = []
        for start in range(0, len(once), _BATCH):
            some = once[start : start + _BATCH]
            with _as_bundle_errors(self._bundle):
                feeds = {name: tokenizer.encode(some)[0] for name, tokenizer in self._tokenizers.items()}
            parts.append(evaluate(self._session, feeds, TEXT))
        place = {text: row for row, text in enumerate(once)}
        order = [place[text] for text in texts]
        return {
            name: np.concatenate([part[index] for part in parts])[order].astype(np.float32)
            for index, name in enumerate(self._outputs)
        }


@contextlib.contextmanager
def _as_bundle_errors(bundle: Bundle) -> Iterator[None]:
    """Turns every error of the package tokenizers into one line; its panics are not even an ``Exception``."""
    try:
        yield
    except (FastdcError, Warning, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise BundleError(f"a tokenizer of {bundle.path} does not work: {one_line(error)}") from None


def firsts_of_texts(bundle: Bundle, texts: Sequence[str]) -> Int64:
    """For each text, the first of them that all text encoders of a bundle read as the same tokens, int64 (n,).

    Args:
        bundle: A bundle with a text encoder.
        texts: n texts, one or more.

    Raises:
        InputError: The bundle has no text encoder, or a text's placeholders cannot be told apart.
        MissingDependencyError: tokenizers or onnxruntime is not installed.
        BundleError: A tokenizer or the graph is corrupt.

    Example:
        >>> from fastdc.backends import firsts_of_texts
        >>> shapes = fastdc.load_bundle(fastdc.bundle.find_model("shapes"))
        >>> firsts_of_texts(shapes, ["a red cube", "a blue cube", "A  red cube"])
        array([0, 1, 0])
    """
    return OnnxTextEncoder(bundle).firsts(texts)


def with_prompts(bundle: Bundle, prompts: Prompts) -> Bundle:
    """A bundle in memory with other classes, each described by prompts; nothing changes on disk.

    The bundle's calibrations and its posterior's temperature belong to the classes that it was made with. The result
    has no calibrations; it keeps the temperature, which is only a guess for the new classes.

    Args:
        bundle: A bundle with a text encoder.
        prompts: Prompts that describe each class.

    Raises:
        InputError: The bundle has no text encoder, or prompts of two classes become the same tokens.
        MissingDependencyError: tokenizers or onnxruntime is not installed.
        BundleError: A tokenizer or the graph is corrupt.

    Warns:
        PromptWarning: A prompt is longer than the text encoder reads, or is the same to it as another of its class.

    Example:
        >>> from fastdc.backends import with_prompts
        >>> from fastdc.bundle import Prompts, find_model
        >>> with_prompts(fastdc.load_bundle(find_model("digits-mlp")), Prompts(("a cat",), (0,), ("cat",)))
        Traceback (most recent call last):
        fastdc.support.exceptions.InputError: model digits-mlp has no text encoder: export it again with its prompts
    """
    encoder = OnnxTextEncoder(bundle)
    encoder.check(prompts)
    tables = encoder.encode(prompts.texts)
    null = bundle.model.null_class
    if null is not None:  # the null class's row is not always the encoding of an empty text: keep the bundle's own row
        own = condition_tables(bundle)
        tables = {name: np.concatenate([table, own[name][null : null + 1]]) for name, table in tables.items()}
    # Results identify the exact model by this digest, which covers the bundle's identity and the prompts.
    asked = repr((bundle.model.identity, prompts.texts, prompts.class_of, prompts.class_names))
    model = replace(
        bundle.model,
        class_names=prompts.class_names,
        prompts=prompts.texts,
        class_of=prompts.class_of,
        class_counts=None,
        null_class=None if null is None else len(prompts.texts),
        identity=hashlib.sha256(asked.encode()).hexdigest(),
        calibration=None,
        noised_calibrations=(),
    )
    return replace(bundle, model=model, tables=tables)
