"""Maps on phantoms: do they point at the lesion, and are they faithful to the classifier?

    python bench/explain.py [--model phantoms] [--images 30] [--seeds 3] [--quick]

The images are test phantoms with a lesion, whose masks are known. Compared are the error maps of the shipped diffusion
classifier; the gradient, integrated gradients and occlusion of the same classifier (``as_module``, by captum) and of an
independent CNN that is trained here; the brightness of a pixel against its surroundings, which knows no classifier; and
random maps. Every method may be smoothed. The width, the baseline of captum's methods, and the share of pixels for the
IoU are those that are best on validation phantoms, by average precision and IoU.

Deletion and insertion replace pixels by those of the same phantom without its lesion ("healthy"), or by blurred ones;
the score is the probability of the lesion, by the diffusion classifier or by the CNN. The sanity check compares maps
before and after all weights have been shuffled.

Numbers are means over images, of noise seeds first, with 95 % bootstrap intervals over images. Differences are ours
minus the other's on the same images. Needs torch, captum, onnx and scikit-learn; takes some ten minutes.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

import fastdc
from common import parser, print_table, save
from fastdc import DiffusionClassifier
from fastdc.data import Phantoms
from fastdc.explanation import (
    ATTRIBUTIONS,
    BASELINES,
    Interval,
    attributions,
    average_precision,
    best_share,
    bootstrap_mean,
    deletion,
    energy_inside,
    error_maps,
    insertion,
    iou,
    map_similarity,
    pointing_game,
    shuffled_bundle,
    shuffled_module,
)
from fastdc.inference import Images
from fastdc.support import Float32, Float64, Int64
from fastdc.testing import phantoms
from phantom_cnn import lesion_probability, train_phantom_cnn

OURS = "error maps"
WIDTHS = (0.0, 1.0, 1.5, 2.0)  # of the smoothing, pixels
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "gradient": ({},),
    "integrated_gradients": tuple({"steps": 12, "baseline": one} for one in BASELINES),
    "occlusion": tuple({"window": 6, "baseline": one} for one in BASELINES),
}
"""Options of the methods by captum that validation chooses from."""

QUICK = {"images": 4, "val": 3, "seeds": 2, "draws": 4, "other_draws": 2, "steps": 4}


@dataclass(frozen=True)
class Method:
    """Maps (n, h, w) of phantoms, under a noise seed and one of some options.

    Attributes:
        maps: Makes them.
        options: What validation chooses from.
        seeds: Number of noise seeds, fewer for methods that take long.
    """

    maps: Callable[[Phantoms, int, dict[str, Any]], Float64]
    options: tuple[dict[str, Any], ...] = ({},)
    seeds: int = 1


@dataclass(frozen=True)
class Setting:
    """What all parts share."""

    classifier: DiffusionClassifier
    differentiable: DiffusionClassifier  # the same on the torch backend
    cnn: Any
    draws: int  # of our maps
    other_draws: int  # of integrated gradients and occlusion, whose draws cost some 50 and 200 times more
    seeds: int

    def draws_of(self, name: str) -> int:
        """The draws of a method by captum."""
        return self.draws // 2 if name == "gradient" else self.other_draws


def methods(setting: Setting) -> dict[str, Method]:
    """The methods by name, ours first."""

    def own(data: Phantoms, seed: int, _: dict[str, Any]) -> Float64:
        return our_maps(setting.classifier, data, setting.draws, seed)

    def random(data: Phantoms, seed: int, _: dict[str, Any]) -> Float64:
        return np.random.default_rng(seed).uniform(size=data.masks.shape)

    found = {OURS: Method(own, seeds=setting.seeds)}
    for name in ATTRIBUTIONS:
        seeds = {"gradient": setting.seeds, "integrated_gradients": min(2, setting.seeds), "occlusion": 1}[name]
        found[f"{name}, same classifier"] = Method(of_classifier(setting, name), OPTIONS[name], seeds)
    for name in ATTRIBUTIONS:
        found[f"{name}, CNN"] = Method(of_cnn(setting, name), OPTIONS[name])
    found["brightness"] = Method(lambda data, *_: brightness(data))
    found["random"] = Method(random, seeds=setting.seeds)
    return found


def of_classifier(setting: Setting, name: str) -> Callable[[Phantoms, int, dict[str, Any]], Float64]:
    """A method by captum on the diffusion classifier."""

    def maps(data: Phantoms, seed: int, options: dict[str, Any]) -> Float64:
        module = setting.differentiable.as_module(draws=setting.draws_of(name), stream=0, seed=seed)
        return module_maps(module, data, name, options)

    return maps


def of_cnn(setting: Setting, name: str) -> Callable[[Phantoms, int, dict[str, Any]], Float64]:
    """A method by captum on the CNN."""
    return lambda data, _, options: module_maps(setting.cnn, data, name, options)


def our_maps(classifier: DiffusionClassifier, data: Phantoms, draws: int, seed: int) -> Float64:
    """Where the class "lesion" denoises better than "healthy"."""
    job = classifier.settings(rule="full", draws=draws, seed=seed).job
    pairs = np.tile(np.array([[1, 0]], np.int32), (len(data), 1))
    return error_maps(job, Images.of(data.images, classifier.model), pairs).mean.astype(np.float64)


def module_maps(module: Any, data: Phantoms, name: str, options: dict[str, Any]) -> Float64:
    """A map of captum for "lesion" against "healthy"."""
    ones = np.ones(len(data), np.int64)
    return attributions(module, data.images, ones, 0 * ones, method=name, chunk=128, **options)


def brightness(data: Phantoms) -> Float64:
    """How much brighter a pixel is than its surroundings."""
    images = data.images[:, 0] / 255
    return np.asarray(images - gaussian_filter(images, (0, 4, 4)))


def smoothed(maps: Float64, width: float) -> Float64:
    """The maps, smoothed by a Gaussian."""
    return np.asarray(gaussian_filter(maps, (0, width, width))) if width else maps


def chosen(method: Method, data: Phantoms) -> tuple[dict[str, Any], float, float]:
    """The options, the width of the smoothing and the share of pixels that are best on validation phantoms."""
    tried = []
    for options in method.options:
        maps = method.maps(data, 1000, options)
        for width in WIDTHS:
            found = smoothed(maps, width)
            tried.append((float(average_precision(found, data.masks).mean()), options, width, found))
    _, options, width, found = max(tried, key=lambda one: one[0])
    return options, width, best_share(found, data.masks)


def against_masks(maps: list[Float64], data: Phantoms, share: float) -> dict[str, Float64]:
    """Every measure of the maps of each seed, (n, seeds)."""
    masks = data.masks
    measures: dict[str, Callable[[Float64], Float64]] = {
        "pointing game": lambda one: pointing_game(one, masks),
        "pointing game, 1 pixel": lambda one: pointing_game(one, masks, tolerance=1.0),
        "IoU, area of the mask": lambda one: iou(one, masks),
        "IoU, chosen share": lambda one: iou(one, masks, share=share),
        "energy inside": lambda one: energy_inside(one, masks),
        "average precision": lambda one: average_precision(one, masks),
    }
    return {name: np.stack([measure(one) for one in maps], axis=1) for name, measure in measures.items()}


def scores_of(setting: Setting) -> dict[str, Callable[[Float32], Float64]]:
    """The probability of the lesion by both classifiers, under the same noise for every image."""

    def diffusion(x: Float32) -> Float64:
        streams = np.zeros(len(x), np.int64)
        found = setting.classifier.classify(x, rule="full", draws=8, streams=streams)
        return found.probabilities[:, 1]

    return {"diffusion": diffusion, "CNN": lambda x: lesion_probability(setting.cnn, x)}


def against_classifiers(setting: Setting, maps: Float64, data: Phantoms, steps: int) -> dict[str, Float64]:
    """Areas of deletion and insertion, (n,)."""
    found = {}
    baselines: dict[str, Any] = {"healthy": data.healthy, "blur": "blur"}
    for name, kind in (("diffusion", "healthy"), ("CNN", "healthy"), ("CNN", "blur")):
        predict = scores_of(setting)[name]
        for curve in (deletion, insertion):
            areas = curve(data.images, maps, predict, steps=steps, baseline=baselines[kind]).areas
            found[f"{curve.__name__} to {kind}, {name}"] = areas
    return found


def sanity(setting: Setting, model: str, data: Phantoms, compared: dict[str, Any]) -> dict[str, Any]:
    """Similarity of maps before and after all weights are shuffled."""
    classifier, cnn = setting.classifier, shuffled_module(setting.cnn)
    with tempfile.TemporaryDirectory() as folder:
        made = shuffled_bundle(model, Path(folder) / "shuffled")
        random_classifier = fastdc.load(made.path, threads=1)
        pairs = {OURS: [our_maps(one, data, setting.draws, 0) for one in (classifier, random_classifier)]}
    for name in ATTRIBUTIONS:
        module = setting.differentiable.as_module(draws=setting.draws_of(name), stream=0)
        random_module = shuffled_module(module)
        for whose, both in (("same classifier", (module, random_module)), ("CNN", (setting.cnn, cnn))):
            options = compared[f"{name}, {whose}"]["options"]
            pairs[f"{name}, {whose}"] = [module_maps(one, data, name, options) for one in both]
    found: dict[str, Any] = {}
    for name, (before, after) in pairs.items():
        alike = map_similarity(before, after)
        parts = {"rank": alike.rank, "absolute rank": alike.rank_absolute, "ssim": alike.ssim}
        found[name] = {part: numbers(bootstrap_mean(values)) for part, values in parts.items()}
    return found


def numbers(found: Interval) -> dict[str, Any]:
    """An interval as JSON."""
    return {name: round(getattr(found, name), 4) for name in ("mean", "low", "high")} | {"images": found.images}


def rows_of(data: Phantoms, rows: Int64) -> Phantoms:
    """Some of the phantoms."""
    return Phantoms(data.images[rows], data.labels[rows], data.masks[rows], data.groups[rows], data.healthy[rows])


def ill(data: Phantoms, count: int) -> Phantoms:
    """The first phantoms with a lesion."""
    return rows_of(data, np.flatnonzero(data.labels == 1)[:count])


def compare(setting: Setting, val: Phantoms, test: Phantoms, steps: int) -> dict[str, Any]:
    """All methods on the same images: their means, and ours minus theirs."""
    values: dict[str, dict[str, Float64]] = {}
    found: dict[str, Any] = {}
    for name, method in methods(setting).items():
        start = time.perf_counter()
        options, width, share = chosen(method, val)
        maps = [smoothed(method.maps(test, seed, options), width) for seed in range(method.seeds)]
        values[name] = against_masks(maps, test, share) | against_classifiers(setting, maps[0], test, steps)
        found[name] = {
            "options": options,
            "smoothing": width,
            "share": share,
            "seeds": method.seeds,
            **{measure: numbers(bootstrap_mean(one)) for measure, one in values[name].items()},
        }
        if name != OURS:
            found[name]["ours minus this"] = {
                measure: numbers(bootstrap_mean(_mean(values[OURS][measure]) - _mean(one)))
                for measure, one in values[name].items()
            }
        print(f"{name}: {options}, smoothing {width}, share {share}, {time.perf_counter() - start:.0f} s", flush=True)
    return found


def _mean(values: Float64) -> Float64:
    return values if values.ndim == 1 else np.asarray(values.mean(axis=1))


def print_results(result: dict[str, Any]) -> None:
    """Prints the tables."""
    maps = result["maps"]
    curves = [name for name in maps[OURS] if name.startswith(("deletion", "insertion"))]
    masks = [name for name in maps[OURS] if name not in (*curves, "options", "smoothing", "share", "seeds")]
    for title, columns in (("Against masks", masks), ("Areas of curves", curves)):
        rows = [
            [name, *(f"{one[c]['mean']:.3f} ({one[c]['low']:.3f} to {one[c]['high']:.3f})" for c in columns)]
            for name, one in maps.items()
        ]
        print_table(title, ["method", *columns], rows)
    rows = [[name, *(f"{one[c]['mean']:.3f}" for c in one)] for name, one in result["sanity"].items()]
    print_table("Similarity to maps of shuffled weights", ["method", "rank", "absolute rank", "ssim"], rows)


def auroc(setting: Setting, test: Phantoms) -> dict[str, float]:
    """The AUROC of both classifiers on these phantoms."""
    from sklearn.metrics import roc_auc_score

    unit = (test.images / 255).astype(np.float32)
    ours = setting.classifier.classify(test.images, rule="full").probabilities[:, 1]
    found = {"diffusion": ours, "CNN": lesion_probability(setting.cnn, unit)}
    return {name: round(float(roc_auc_score(test.labels, values)), 4) for name, values in found.items()}


def main() -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "explain")
    made.add_argument("--model", default="phantoms", help="shipped model, or a bundle with torch weights [%(default)s]")
    made.add_argument("--images", type=int, default=30, help="test phantoms with a lesion [%(default)s]")
    made.add_argument("--val", type=int, default=8, help="validation phantoms with a lesion [%(default)s]")
    made.add_argument("--seeds", type=int, default=3, help="noise seeds of each map [%(default)s]")
    made.add_argument("--draws", type=int, default=64, help="draws of error maps [%(default)s]")
    made.add_argument(
        "--other-draws", type=int, default=4, help="draws of integrated gradients and occlusion [%(default)s]"
    )
    made.add_argument("--steps", type=int, default=12, help="steps of deletion and insertion [%(default)s]")
    made.add_argument("--quick", action="store_true", help="few images and draws, as a trial")
    given = made.parse_args()
    if given.quick:
        vars(given).update(QUICK)
    save(given.out, run(given))


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The result of all parts."""
    cnn = train_phantom_cnn(phantoms(300 if given.quick else 4000, "train"), epochs=1 if given.quick else 15)
    classifier, torch_too = (fastdc.load(given.model, backend=name, threads=1) for name in ("onnx", "torch"))
    setting = Setting(classifier, torch_too, cnn, given.draws, given.other_draws, given.seeds)
    test, val = phantoms(60 if given.quick else 1500, "test"), phantoms(60 if given.quick else 800, "val")
    some, steps = ill(test, given.images), given.steps
    compared = compare(setting, ill(val, given.val), some, steps)
    result = {
        "model": given.model,
        "draws": {"error maps": given.draws, **{name: setting.draws_of(name) for name in ATTRIBUTIONS}},
        "auroc": auroc(setting, rows_of(test, np.arange(min(len(test), 10 * given.images)))),
        "maps": compared,
        "sanity": sanity(setting, given.model, rows_of(some, np.arange(min(20, len(some)))), compared),
    }
    print_results(result)
    return result


if __name__ == "__main__":
    main()
