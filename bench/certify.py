"""Certification: certified accuracy, evaluations and time against the released procedure and two CNN baselines.

    python bench/certify.py [--model digits-mlp] [--images 100] [--n 1000] [--sigma 0.125 0.25 0.5]
    python bench/certify.py --only-times [--images 10]

At every sigma, the first test images are certified with alpha = 0.001, n0 = 100 and n copies by several base
classifiers:

* DC, EPNDC and APNDC with the model's calibrated race, as ``fastdc certify`` uses them.
* The released APNDC: its grid of 124 levels and its weights, with every class at every level. Its certified accuracy
  comes from the same engine, with the same network, levels and weights. Its time comes from ``ndc_loop.py`` on a few
  copies, multiplied by the number of copies; both sides are timed in turns.
* Cohen's base classifier, a CNN trained on images with that noise.
* Denoised smoothing: one denoising step of the diffusion model, then a CNN trained on clean images.

All of them see the same copies. Then --radius: the number of copies that ``Target`` takes for R = 0.5, against 10 000
copies, on a few images.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fastdc
from common import parser, print_table, save
from fastdc.bundle import find_model
from fastdc.certification import (
    AbstractBase,
    AbstractEstimation,
    Certificate,
    DiffusionBase,
    Fixed,
    FunctionBase,
    Target,
    records_of,
    summarize,
)
from fastdc.data import LabelledImages, digits_test
from fastdc.diffusion import PURPOSE_ESTIMATION, noisy_copies
from fastdc.inference import released_plan, streams_of, to_model_range
from fastdc.support import Float32, Int64, require
from ndc_loop import ReleasedLoop
from tables import announced, first_images, note

RADII = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75)
ALPHA, N0 = 0.001, 100
RELEASED = "APNDC as released"


@dataclass(frozen=True)
class Study:
    """Everything that all sigmas share.

    Attributes:
        classifier: Classifier of the model.
        bundle: Bundle of the model.
        test: Test images to certify.
        n: Number of estimation copies.
        train: Training images of the CNNs.
        released: Whether to certify by the released procedure, too.
    """

    classifier: fastdc.DiffusionClassifier
    bundle: fastdc.Bundle
    test: LabelledImages
    n: int
    train: LabelledImages
    released: bool

    def run(self, base: AbstractBase, estimation: AbstractEstimation, count: int | None = None) -> list[Certificate]:
        """Certifies the test images, or the first `count` of them."""
        stream = self.classifier.certify_stream(self.test.images[:count], estimation, n0=N0, base=base)
        return [certificate for _, certificate in stream]

    def copies(self, sigma: float, count: int) -> Float32:
        """Estimation copies, `count` in all, of the images in turn."""
        x = to_model_range(self.test.images, self.classifier.model)
        std, streams = self.classifier.model.noise_ratio(sigma), streams_of(x)
        made = [
            noisy_copies(x[i], number, 1, std=std, seed=0, stream=int(streams[i]), purpose=PURPOSE_ESTIMATION)[0]
            for number, i in (divmod(k, len(x)) for k in range(count))
        ]
        return np.concatenate(made)


def denoise_with(study: Study, sigma: float) -> Callable[[Float32], Float32]:
    """Makes the function of one denoising step without a class, from and to pixels in [0, 1], on eager torch."""
    torch = require("torch", extra="export")
    loop = ReleasedLoop.of(study.bundle, sigma)
    model = study.classifier.model
    levels = model.schedule.levels([model.schedule.position_of(loop.tau)])

    def step(images: Float32) -> Float32:
        x = torch.from_numpy(model.pixels.from_unit(images))
        m = len(x)
        with torch.inference_mode():
            out = loop.denoise(
                x,
                torch.full((m,), loop.tau),
                torch.tensor(levels.timestep, dtype=torch.float32).expand(m),
                torch.full((m,), model.null_class),
            )
        return np.asarray(model.pixels.to_unit(out.numpy()), np.float32)

    return step


def cnn_bases(study: Study, sigma: float) -> dict[str, AbstractBase]:
    """Base classifiers of Cohen and of denoised smoothing."""
    torch = require("torch", extra="export")
    from digits_cnn import train_cnn

    noisy, clean = train_cnn(study.train, noise=sigma, epochs=60), train_cnn(study.train, epochs=20)
    denoise = denoise_with(study, sigma)

    def scores(network: Any, images: Float32) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(images))

    return {
        "CNN trained with noise (Cohen)": FunctionBase(lambda x: scores(noisy, x), 10, name="cnn"),
        "denoised, then CNN": FunctionBase(lambda x: scores(clean, denoise(x)), 10, name="denoised cnn", evaluations=2),
    }


def diffusion_bases(study: Study, sigma: float) -> dict[str, DiffusionBase]:
    """Our base classifiers, and the released one on our engine."""
    bases = {
        name: study.classifier.base(sigma=sigma, method=method)
        for name, method in (("DC, race", "dc"), ("EPNDC, race", "epndc"), ("APNDC, race", "apndc"))
    }
    if study.released:
        bases[RELEASED] = study.classifier.base(rule="full", **released_plan(study.classifier.model, "apndc", sigma))
    return bases


def record(name: str, made: list[Certificate], truth: Int64, seconds: float) -> dict[str, Any]:
    """One row: certified accuracy at the radii with 95 % intervals, ACR, cost."""
    found = summarize(records_of(made, truth), RADII)
    assert found.certified is not None
    assert found.average_radius is not None
    assert found.evaluations is not None
    assert found.copies is not None
    return {
        "name": name,
        "certified": [estimate.value for estimate in found.certified],
        "ci95": [[estimate.low, estimate.high] for estimate in found.certified],
        "acr": found.average_radius.value,
        "evaluations_an_image": found.evaluations,
        "evaluations_a_copy": found.evaluations / found.copies,
        "seconds_an_image": seconds / len(made),
    }


def measure(study: Study, sigma: float, loop_copies: int, rounds: int) -> dict[str, Any]:
    """Certifies by all base classifiers at one sigma, and prints tables."""
    estimation = Fixed(sigma, study.n, ALPHA)
    records = []
    for name, base in {**diffusion_bases(study, sigma), **cnn_bases(study, sigma)}.items():
        with announced(f"sigma {sigma:g}: {name}"):
            start = time.perf_counter()
            made = study.run(base, estimation)
            records.append(record(name, made, study.test.labels[: len(made)], time.perf_counter() - start))
            if isinstance(base, DiffusionBase):
                records[-1]["rule"] = base.job.describe()["rule"]
    times = loop_times(study, sigma, loop_copies, rounds) if rounds else None
    evaluations = ReleasedLoop.of(study.bundle, sigma).evaluations
    for entry in records:
        entry["fewer_evaluations"] = evaluations * (N0 + study.n) / entry["evaluations_an_image"]
    columns = ["sigma " + f"{sigma:g}", *(f"{r:g}" for r in RADII), "ACR", "NFE per copy", "NFE per image", "fewer"]
    rows = [
        [
            entry["name"],
            *(f"{100 * share:.0f}" for share in entry["certified"]),
            f"{entry['acr']:.3f}",
            f"{entry['evaluations_a_copy']:.1f}",
            f"{entry['evaluations_an_image']:,.0f}",
            f"{entry['fewer_evaluations']:.0f}x",
        ]
        for entry in records
    ]
    print_table(f"{len(study.test)} images, n = {study.n}: certified accuracy (%) at radii", columns, rows)
    if times is not None:
        print_times(sigma, times)
    return {"sigma": sigma, "records": records, "times": times}


def print_times(sigma: float, times: dict[str, Any]) -> None:
    """Prints the table of :func:`loop_times`."""
    print_table(
        f"sigma {sigma:g}: seconds per image, {times['rounds']} rounds",
        ["side", "seconds", "faster"],
        [[name, f"{value:.3g}", f"{times['faster'].get(name, 1):.0f}x"] for name, value in times["seconds"].items()],
    )


def measure_times(study: Study, sigma: float, loop_copies: int, rounds: int) -> dict[str, Any]:
    """Times the sides at one sigma, and prints a table."""
    with announced(f"sigma {sigma:g}: times"):
        times = loop_times(study, sigma, loop_copies, rounds)
    print_times(sigma, times)
    return {"sigma": sigma, "times": times}


def loop_times(study: Study, sigma: float, loop_copies: int, rounds: int) -> dict[str, Any]:
    """Seconds per image: of the released loop from a few copies, and of ours on a few images, in turns."""
    loop = ReleasedLoop.of(study.bundle, sigma)
    copies = study.copies(sigma, loop_copies)
    ours = {name: base for name, base in diffusion_bases(study, sigma).items() if name != RELEASED}
    few = min(10, len(study.test))
    estimation = Fixed(sigma, study.n, ALPHA)
    loop(copies[:2])
    seconds: dict[str, list[float]] = {name: [] for name in ("released loop, torch", *ours)}
    for _ in range(rounds):
        seconds["released loop, torch"].append(loop(copies)[1] / len(copies) * (N0 + study.n))
        for name, base in ours.items():
            start = time.perf_counter()
            study.run(base, estimation, few)
            seconds[name].append((time.perf_counter() - start) / few)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    plain = np.array(seconds["released loop, torch"])
    faster = {name: float(np.median(plain / np.array(seconds[name]))) for name in ours}
    return {
        "evaluations": loop.evaluations,
        "seconds": median,
        "faster": faster,
        "rounds": rounds,
        "copies": loop_copies,
    }


def measure_target(study: Study, sigma: float, radius: float, count: int) -> dict[str, Any]:
    """Counts the copies that a fixed radius takes: on all images, and on the first `count` against n = 10 000."""
    base = study.classifier.base(sigma=sigma, method="epndc")
    full = study.run(base, Fixed(sigma, 10_000, ALPHA), count)
    every = study.run(base, Target(sigma, radius, 10_000, ALPHA))
    asked = every[:count]
    truth = study.test.labels[:count]
    result = {
        "sigma": sigma,
        "radius": radius,
        "images": count,
        "copies_fixed": float(np.mean([c.copies for c in full])),
        "copies_target": float(np.mean([c.copies for c in asked])),
        "all_images": len(every),
        "copies_target_all": float(np.mean([c.copies for c in every])),
        "fewer_copies_all": 10_000 / float(np.mean([c.copies for c in every])),
        "evaluations_fixed": float(np.mean([c.evaluations for c in full])),
        "evaluations_target": float(np.mean([c.evaluations for c in asked])),
        "certified_fixed": float(
            np.mean([c.radius >= radius and c.label == t for c, t in zip(full, truth, strict=True)])
        ),
        "certified_target": float(
            np.mean([c.radius >= radius and c.label == t for c, t in zip(asked, truth, strict=True)])
        ),
    }
    shown = ("copies_fixed", "copies_target", "copies_target_all", "evaluations_fixed", "evaluations_target")
    row = [f"{result[key]:.4g}" for key in shown]
    row += [f"{100 * result['certified_fixed']:.0f} / {100 * result['certified_target']:.0f}"]
    columns = ["sigma", "copies, n = 10 000", "target", "target, all images", "NFE, n = 10 000", "NFE, target"]
    columns += ["certified, %"]
    print_table(f"radius {radius:g} on {count} images", columns, [[f"{sigma:g}", *row]])
    return result


def main() -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "certify")
    made.add_argument("--model", default="digits-mlp")
    made.add_argument(
        "--sigma", type=float, nargs="*", default=[0.125, 0.25, 0.5], help="without a value: only the fixed radius"
    )
    made.add_argument("--images", type=int, default=100, help="number of test images [%(default)s]")
    made.add_argument("--n", type=int, default=1000, help="number of estimation copies [%(default)s]")
    made.add_argument("--threads", type=int, default=None, help="number of CPU threads [all usable]")
    made.add_argument("--loop-copies", type=int, default=8, help="copies of the released loop per round [%(default)s]")
    made.add_argument("--rounds", type=int, default=3, help="rounds of timing; 0: none [%(default)s]")
    made.add_argument(
        "--skip-released",
        action="store_true",
        help="do not certify all images by the released procedure (hours on a UNet), only time it on a few copies",
    )
    made.add_argument("--only-times", action="store_true", help="print only the table of seconds per image")
    made.add_argument("--radius", type=float, default=0.5, help="radius of the last part [%(default)s]")
    made.add_argument("--target-images", type=int, default=10, help="images at n = 10 000; 0: none [%(default)s]")
    arguments = made.parse_args()
    torch = require("torch", extra="export")
    classifier = fastdc.load(arguments.model, backend="onnx", threads=arguments.threads)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    few = first_images(digits_test(), arguments.images)
    from digits_cnn import training_digits

    with tempfile.TemporaryDirectory() as folder:
        train = training_digits(Path(folder))
    study = Study(
        classifier,
        fastdc.load_bundle(find_model(arguments.model)),
        few,
        arguments.n,
        train,
        not arguments.skip_released,
    )
    result: dict[str, Any] = {
        "question": "what certification costs and gives",
        "model": arguments.model,
        "images": len(few),
        "n": arguments.n,
        "n0": N0,
        "alpha": ALPHA,
        "radii": list(RADII),
    }
    one = measure_times if arguments.only_times else measure
    result["sigmas"] = [one(study, sigma, arguments.loop_copies, arguments.rounds) for sigma in arguments.sigma]
    if arguments.target_images and not arguments.only_times:
        note("a fixed radius")
        result["target"] = measure_target(study, 0.25, arguments.radius, arguments.target_images)
    save(arguments.out, result)


if __name__ == "__main__":
    main()
