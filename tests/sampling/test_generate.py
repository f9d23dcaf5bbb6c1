"""Images from noise: the same bits in any batch, guidance by hand, refusals, Ctrl-C."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc import DiffusionClassifier, InputError, Interrupted, Progress
from fastdc.backends import FunctionNetwork, NetworkOptions
from fastdc.bundle import HaarTransform
from fastdc.diffusion import kernels
from fastdc.sampling import GuidedDenoiser, Trajectory, check_guidance, conditions_of, sample
from fastdc.support import Float32, Float64, Int64
from fastdc.testing import reference
from helpers.worlds import SHAPE, ManySlots, classifier, denoiser, fails_with, gaussian, refusing

WORLD = gaussian(4)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun"])
def test_batches_order_and_slots_change_no_bit(sampler: str) -> None:
    labels, streams = np.arange(7) % 4, np.arange(100, 107)
    whole = sample(classifier(WORLD), labels, sampler=sampler, steps=5, streams=streams, seed=9)
    for clf in (classifier(WORLD, batch=2), classifier(WORLD, batch=3, slots=2)):
        np.testing.assert_array_equal(sample(clf, labels, sampler=sampler, steps=5, streams=streams, seed=9), whole)
    order = np.array([6, 2, 0])
    some = sample(classifier(WORLD), labels[order], sampler=sampler, steps=5, streams=streams[order], seed=9)
    np.testing.assert_array_equal(some, whole[order])
    kernels.set_num_threads(3)
    np.testing.assert_array_equal(
        sample(classifier(WORLD), labels, sampler=sampler, steps=5, streams=streams, seed=9), whole
    )
    assert not np.array_equal(
        sample(classifier(WORLD), labels, sampler=sampler, steps=5, streams=streams, seed=8), whole
    )


def test_the_noise_is_the_counters_with_a_purpose_of_its_own() -> None:
    """A denoiser that says 0 leaves, after one step, nothing; after "ddpm" to the lowest level, known normals."""
    network = FunctionNetwork(lambda sample, *_: np.zeros_like(sample), SHAPE, NetworkOptions(batch=8))
    denoise: list[Float64] = []

    def first(sample: Float32, *_: Any) -> Float32:
        denoise.append(sample.astype(np.float64))
        return np.zeros_like(sample)

    clf = DiffusionClassifier(WORLD.model, FunctionNetwork(first, SHAPE, NetworkOptions(batch=8)))
    sample(clf, [0], sampler="ddpm", steps=2, streams=[77], seed=5)
    sigma, s = (clf.model.schedule.levels([1.0, 0.0]).sigma).tolist()
    n0 = reference.normal(5, 77, 0, 16, kernels.PURPOSE_SAMPLING).reshape(1, *SHAPE)
    n1 = reference.normal(5, 77, 1, 16, kernels.PURPOSE_SAMPLING).reshape(1, *SHAPE)
    np.testing.assert_allclose(denoise[0], sigma * n0, rtol=1e-5, atol=1e-5)
    expected = s**2 / sigma * n0 + s * np.sqrt(1 - (s / sigma) ** 2) * n1
    np.testing.assert_allclose(denoise[1], expected, rtol=1e-4, atol=1e-6)
    assert network.batch == 8


def guided_world() -> DiffusionClassifier:
    """Class 3 of the world is "no class"."""
    model = replace(WORLD.model, class_names=("a", "b", "c"), null_class=3)
    return DiffusionClassifier(model, ManySlots(denoiser(WORLD), SHAPE))


@pytest.mark.parametrize("w", [0.0, 1.5, -1.0])
def test_guidance_combines_estimates_and_predictions_alike(w: float) -> None:
    """The prediction of noise, combined in float64, gives the estimate that the denoiser of combined images gives."""
    clf = guided_world()
    path = Trajectory.of(clf.model.schedule, 3)
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((5, *SHAPE)), np.array([0, 1, 2, 0, 1])
    found = GuidedDenoiser(clf.network, clf.model, path.levels, clip=False)(x, 1, labels.astype(np.int32), w)
    sigma = np.full(5, path.points[1].sigma)
    given, null = (WORLD.denoise(x, sigma, classes) for classes in (labels, np.full(5, 3)))
    eps = (1 + w) * (x - given) / sigma[0] - w * (x - null) / sigma[0]
    np.testing.assert_allclose(found, x - sigma[0] * eps, atol=5e-6)


def test_estimates_are_clipped_after_guidance() -> None:
    clf = guided_world()
    path = Trajectory.of(clf.model.schedule, 3)
    x = 3 * np.random.default_rng(0).standard_normal((5, *SHAPE))
    made = [
        GuidedDenoiser(clf.network, clf.model, path.levels, clip=clip)(x, 2, np.zeros(5, np.int32), 4.0)
        for clip in (False, True)
    ]
    assert np.abs(made[0]).max() > 1
    np.testing.assert_array_equal(made[1], np.clip(made[0], -1, 1))


def test_coefficients_become_pixels() -> None:
    """A model of Haar coefficients that always estimates one image gives that image, with its pixels clipped."""
    haar = HaarTransform(factor=0.5)
    image = np.random.default_rng(1).uniform(-1.5, 1.5, (1, *SHAPE))
    model = replace(WORLD.model, transform=haar)

    def estimate(sample: Float32, *_: Any) -> Float64:
        return np.repeat(haar.forward(image), len(sample), axis=0)

    clf = DiffusionClassifier(model, FunctionNetwork(estimate, model.sample_shape, NetworkOptions(batch=4)))
    made = sample(clf, [0, 1], steps=3)
    np.testing.assert_allclose(made, np.repeat((np.clip(image, -1, 1) + 1) / 2, 2, axis=0), atol=1e-6)


def test_progress_counts_evaluations() -> None:
    told: list[Progress] = []
    clf = guided_world()
    sample(clf, [0, 1, 2], sampler="heun", steps=4, guidance=1.0, progress=told.append)
    assert told[-1].finished == told[-1].images == 3
    assert told[-1].evaluations == told[-1].at_most == 3 * 2 * 7
    assert [each.evaluations for each in told[:-1]] == [6, 12, 18, 24, 30, 36, 42]


def test_ctrl_c_leaves_the_images_that_are_finished() -> None:
    clf, calls = classifier(WORLD, batch=2), 0

    def stop(progress: Progress) -> None:
        nonlocal calls
        calls += 1
        if progress.finished == 4:
            raise KeyboardInterrupt

    whole = sample(clf, [0] * 6, sampler="ddim", steps=3)
    with pytest.raises(Interrupted, match="4 of 6 images finished") as caught:
        sample(clf, [0] * 6, sampler="ddim", steps=3, progress=stop)
    np.testing.assert_array_equal(caught.value.result, whole[:4])
    np.testing.assert_array_equal(sample(clf, [0] * 6, sampler="ddim", steps=3), whole)  # the turn was given back


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"labels": ["nine"]}, ("labels", "nine")),
        ({"sampler": "plms"}, ("sampler", "plms")),
        ({"steps": 0}, ("steps",)),
        ({"guidance": 2.0}, ("guidance", "no null class")),
        ({"guidance": float("nan")}, ("guidance",)),
        ({"clip": 1}, ("clip",)),
        ({"streams": [1, 2]}, ("streams",)),
        ({"seed": -1}, ("seed",)),
        ({"decoder": abs}, ("decoder", "works on images")),
    ],
)
def test_what_cannot_be_used_is_refused_before_work(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    clf = refusing(WORLD.model)
    fails_with(lambda: sample(clf, **{"labels": [0], **options}), *parts, kind=InputError)


def test_latents_need_a_decoder() -> None:
    from helpers.latent_world import MODEL

    def network(sample: Float32, _: Float32, __: Int64) -> Float32:
        return np.zeros_like(sample)

    class Encoder:
        def encode(self, images: Float32) -> Float32:
            return images[:, :, ::2, ::2]

    clf = DiffusionClassifier(MODEL, FunctionNetwork(network, (1, 2, 2), NetworkOptions(batch=8)), Encoder())
    fails_with(lambda: sample(clf, [0]), "works on latents", "decoder", kind=InputError)
    made = sample(clf, ["green", "blue"], steps=3, decoder=lambda z: np.clip(z.repeat(2, 2).repeat(2, 3), -1, 1))
    assert made.shape == (2, 1, 4, 4)
    fails_with(lambda: sample(clf, [0], steps=3, decoder=lambda z: z), "decoder", kind=fastdc.BackendError)
    np.testing.assert_array_equal(conditions_of(MODEL, np.array([0, 1, 2])), [0, 2, 3])
    assert check_guidance(MODEL, 2) == 2.0


def test_onnx_runtime_makes_the_same_images(tmp_path: Any) -> None:
    """One bundle on another backend: D agrees within float32 rounding, which no step amplifies much here."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    WORLD.write(tmp_path / "world")
    with_onnx = [fastdc.load(tmp_path / "world", threads=threads, batch=batch) for threads, batch in ((1, 4), (2, 64))]
    for sampler in ("ddpm", "heun"):
        made = [sample(clf, [0, 1, 2, 3] * 3, sampler=sampler, steps=8) for clf in with_onnx]
        np.testing.assert_array_equal(made[0], made[1])
        np.testing.assert_allclose(
            made[0], sample(classifier(WORLD), [0, 1, 2, 3] * 3, sampler=sampler, steps=8), atol=2e-5
        )
