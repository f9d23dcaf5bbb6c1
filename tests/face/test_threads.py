"""One classifier asked by many threads at once: every call is answered, with the numbers of a call alone."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc import DiffusionClassifier
from fastdc.certification import Fixed
from fastdc.data import digits_test
from fastdc.diffusion import kernels
from helpers.worlds import ManySlots, classifier, denoiser, gaussian, unit_images

WORLD = gaussian(3)
OPTIONS: dict[str, Any] = {"rule": "staged", "draws": 8, "rule_options": {"looks": (2, 8), "keep": (2, 1)}}


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """What the calls return, each made on a thread of its own, all at the same time."""
    barrier = threading.Barrier(len(calls), timeout=60)

    def call(one: Callable[[], Any]) -> Any:
        barrier.wait()
        return one()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(call, calls, timeout=100))


def same(found: fastdc.Classification, want: fastdc.Classification) -> None:
    for name in ("labels", "probabilities", "errors", "evaluations", "votes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name))


def test_64_threads_are_all_answered_with_the_numbers_of_single_calls() -> None:
    pytest.importorskip("onnxruntime")
    clf, images = fastdc.load("digits-mlp", threads=2), digits_test().images[:64]
    alone = [clf.classify(image[None]) for image in images]
    found = together([partial(clf.classify, image[None]) for image in images])
    for one, want in zip(found, alone, strict=True):
        same(one, want)


@pytest.mark.parametrize(("slots", "devices"), [(1, 1), (2, 1), (2, 3)])
def test_every_kind_of_run_takes_its_turn(slots: int, devices: int) -> None:
    nets = [ManySlots(denoiser(WORLD), batch=8, slots=slots) for _ in range(devices)]
    clf = DiffusionClassifier(WORLD.model, nets[0], replicas=tuple(nets[1:]))
    images = unit_images(6)
    kinds: list[Callable[[], Any]] = [
        lambda: clf.classify(images, rule="full", draws=8).errors,
        lambda: np.concatenate([part.errors for part in clf.stream(images, chunk=2, rule="full", draws=8)]),
        lambda: clf.errors(images, draws=8).errors,
        lambda: clf.calibrate(images, delta=0.2, seeds=1, draws=8).limit,
        lambda: [(c.label, c.successes) for c in clf.certify(images[:2], Fixed(0.25, n=20, alpha=0.1), n0=4)],
    ]
    want = [kind() for kind in kinds]
    found = together(kinds * 4)
    for i, one in enumerate(found):
        np.testing.assert_array_equal(one, want[i % len(kinds)])


def test_likelihood_and_gradients_from_threads() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    clf = fastdc.load("digits-mlp", backend="torch", device="cpu", threads=1)
    images = digits_test().images[:2]
    module = clf.as_module(draws=2)

    def slope() -> Any:
        x = torch.from_numpy(images / np.float32(255)).requires_grad_()
        return torch.autograd.grad(module(x)[:, 0].sum(), x)[0].numpy()

    kinds: list[Callable[[], Any]] = [
        slope,
        lambda: clf.maximize_likelihood(images),
        lambda: clf.classify(images, rule="full", draws=2).errors,
    ]
    want = [kind() for kind in kinds]
    for i, one in enumerate(together(kinds * 4)):
        np.testing.assert_array_equal(one, want[i % 3])


def test_models_are_loaded_by_many_threads_at_once() -> None:
    """Also with other numbers of threads for the kernels, which are one setting of the process."""
    pytest.importorskip("onnxruntime")
    before, images = kernels.num_threads(), digits_test().images[:2]
    want = fastdc.load("digits-mlp", threads=1).classify(images)
    try:
        for found in together(
            [lambda n=n: fastdc.load("digits-mlp", threads=1 + n % 3).classify(images) for n in range(8)]  # type: ignore[misc]
        ):
            same(found, want)
    finally:
        kernels.set_num_threads(before)


def test_prompts_are_encoded_by_many_threads_at_once() -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("onnxruntime")
    prompts = fastdc.bundle.prompts_of(["red cube", "red cone"])
    image = np.zeros((1, *fastdc.load_bundle(fastdc.bundle.find_model("shapes")).image_shape), np.uint8)

    def ask() -> Any:
        return fastdc.load("shapes", prompts=prompts, threads=1).classify(image, draws=1, rule="full")

    want = ask()
    for found in together([ask] * 4):
        same(found, want)


def test_one_encoder_serves_many_threads() -> None:
    pytest.importorskip("onnxruntime")
    clf = fastdc.load("shapes", threads=1)
    images = np.random.default_rng(0).integers(0, 256, (4, *clf.model.image_shape), np.uint8)
    want = [clf.classify(image[None], draws=1, rule="full") for image in images]
    calls: list[Callable[[], Any]] = [partial(clf.classify, image[None], draws=1, rule="full") for image in images]
    found = together(calls * 2)
    for i, one in enumerate(found):
        same(one, want[i % 4])


def test_asyncio_runs_calls_on_threads() -> None:
    import asyncio

    clf, images = classifier(WORLD), unit_images(12)
    want = [clf.classify(image[None]) for image in images]

    async def ask() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(clf.classify, image[None]) for image in images))

    for one, alone in zip(asyncio.run(ask()), want, strict=True):
        same(one, alone)
