"""How fastdc compares with the published formulas and the authors' code: one row per formula, with the difference.

    python bench/fidelity.py

Each row computes the same numbers twice: by fastdc as users call it, and by a plain program that follows the paper or
the released code, in float64, one number at a time. "difference" is the largest one on the row's cases, relative for
errors, weights and levels, absolute for noise and radii, or a count of decisions that differ. The command fails if a
difference exceeds what float32 rows, noise and sums explain. docs/fidelity.md shows the table.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common import print_table
from fastdc import DiffusionClassifier, Model
from fastdc.backends import FunctionNetwork
from fastdc.certification import Fixed, Predict, certified_radius, clopper_pearson
from fastdc.diffusion import (
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    Parameterization,
    kernels,
    make_plan,
    weighting,
)
from fastdc.inference import plan_config, released_plan
from fastdc.rules import Staged, TTest
from fastdc.support import require
from fastdc.testing import GaussianWorld, reference, replay

Float64 = npt.NDArray[np.float64]

VECTORS = Path(__file__).resolve().parents[1] / "tests" / "golden" / "philox4x32_10.txt"
ROW = 5e-7  # a weight or a coefficient, rounded to float32 a few times
ERROR = 2e-6  # an error of float32 rows, noise, network inputs and sums


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        what: The formula, and where it was published.
        against: What it is compared with.
        cases: What was compared, in words.
        difference: The largest difference found.
        allowed: The largest difference that rounding explains; 0 if the numbers are exact.
    """

    what: str
    against: str
    cases: str
    difference: float
    allowed: float


def apart(got: Any, want: Any) -> float:
    """The largest relative difference between numbers of the same sign, or of any numbers and those near 0."""
    a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert a.shape == b.shape
    size = np.maximum(np.abs(a), np.abs(b))
    return float(np.max(np.abs(a - b) / np.where(size > 0, size, 1)))


# --- noise -----------------------------------------------------------------------------------------------------------


def philox() -> Row:
    lines = [line.split() for line in VECTORS.read_text("ascii").splitlines() if not line.startswith("#")]
    wrong = 0
    for line in lines:
        c0, c1, c2, c3, k0, k1, *words = (int(text, 16) for text in line)
        wrong += kernels.philox_words((c0, c1, c2, c3), (k0, k1)) != tuple(words)
    against = "the vectors published with Random123 (Salmon et al., SC'11)"
    return Row("Philox4x32-10", against, f"{len(lines)} vectors", wrong, 0)


def normals() -> Row:
    streams, draws = np.arange(40, dtype=np.int64) ** 3, np.arange(40, dtype=np.int32)
    got = kernels.philox_normal(streams, draws, 4096, seed=9)
    want = np.stack([reference.normal(9, int(s), int(j), 4096) for s, j in zip(streams, draws, strict=True)])
    against = "Box-Muller in float64 of the same words"
    return Row("normals", against, f"{got.size:,} numbers", float(np.abs(got - want).max()), 2e-6)


# --- parameterisations and weightings --------------------------------------------------------------------------------


def edm() -> Row:
    """Karras et al., arXiv 2206.00364, table 1: c_in, c_out, c_skip, c_noise and lambda."""
    data = 0.5
    levels = EDMSchedule().levels(np.linspace(0, 1, 200))
    rows = Parameterization("edm", data).rows(levels, weighting("edm").weight(levels, data), "x0").astype(np.float64)
    want = []
    for s in levels.sigma.tolist():
        c_skip, c_out = data**2 / (s**2 + data**2), s * data / math.sqrt(s**2 + data**2)
        c_in, c_noise, lam = 1 / math.sqrt(data**2 + s**2), math.log(s) / 4, (s**2 + data**2) / (s * data) ** 2
        # u = c_in (x + s e); D - x = c_out F + c_skip (x + s e) - x
        want.append([c_in, c_in * s, c_out, -(s**2) / (s**2 + data**2), c_skip * s, 0, lam, c_noise])
    return Row("EDM: preconditioning and weight", "table 1 of the paper", "200 levels", apart(rows, want), ROW)


def velocity() -> Row:
    """The mean squared error of the velocity e - x (Lipman et al., arXiv 2210.02747), as flow models are trained."""
    world = GaussianWorld.random(3, seed=1)
    schedule = FlowSchedule(shift=3.0)

    def f(sample: Any, timestep: Any, labels: Any) -> Float64:
        t = timestep.astype(np.float64) / 1000
        t4 = t[:, None, None, None]
        clean = world.denoise(sample / (1 - t4), t / (1 - t), labels)
        return np.asarray((sample - clean) / t4)

    model = Model("flow", (1, 4, 4), ("a", "b", "c"), schedule, Parameterization("flow"))
    clf = DiffusionClassifier(model, FunctionNetwork(f, (1, 4, 4)))
    images = np.random.default_rng(0).random((4, 1, 4, 4), dtype=np.float32)
    table = clf.errors(images, draws=12, weighting="velocity", levels="all", streams=np.arange(4))
    want = np.zeros(table.errors.shape)
    for i, image in enumerate(images.astype(np.float64)):
        x = 2 * image - 1
        for j, ratio in enumerate(table.sigma.tolist()):
            t = ratio / (1 + ratio)
            e = reference.normal(0, i, j, 16).reshape(1, 4, 4)
            x_t = np.repeat(((1 - t) * x + t * e)[None], 3, axis=0)
            said = f(x_t, np.full(3, 1000 * t), np.arange(3))
            want[i, :, j] = ((said - (e - x)) ** 2).mean(axis=(1, 2, 3))
    against = "the velocity's squared error, x_t = (1 - t) x + t e"
    return Row("flow models: weighting velocity", against, f"{want.size} errors", apart(table.errors, want), ERROR)


def clark_jaini_weight() -> Row:
    """Clark & Jaini, arXiv 2303.15233, section 3: exp(-7 t) on the squared error of the image, t in [0, 1]."""
    schedule, kind = DiscreteSchedule(), Parameterization("epsilon")
    t = (np.arange(1000) + 0.5) / 1000
    rows = kind.rows(schedule.levels(t), weighting("exp").weight(schedule.levels(t)), "x0").astype(np.float64)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    x, e, f = 0.3, -1.2, -0.7
    x_t = np.sqrt(alpha_bar) * x + np.sqrt(1 - alpha_bar) * e
    said = (x_t - np.sqrt(1 - alpha_bar) * f) / np.sqrt(alpha_bar)
    want = np.exp(-7 * t) * (x - said) ** 2
    got = rows[:, 6] * (rows[:, 2] * f + rows[:, 3] * x + rows[:, 4] * e) ** 2
    return Row(
        "Clark & Jaini: w_t = exp(-7 t)", "the error in x-prediction space", "1000 steps", apart(got, want), 2e-6
    )


# --- Li et al., arXiv 2303.16203 -------------------------------------------------------------------------------------


def li_errors(loss: str) -> Row:
    """Algorithm 1 on noise prediction, with the losses of the released code's --loss."""
    import torch
    from torch.nn import functional

    schedule = DiscreteSchedule("scaled_linear", 0.00085, 0.012)

    def f(sample: Any, timestep: Any, labels: Any) -> Float64:
        u = sample.astype(np.float64)
        shift = (labels + 1)[:, None, None, None] + timestep.astype(np.float64)[:, None, None, None] / 1000
        return np.asarray(2 * np.sin(u * shift) + 0.1 * u)

    model = Model("plain", (3, 6, 6), ("a", "b", "c", "d"), schedule, Parameterization("epsilon"))
    clf = DiffusionClassifier(model, FunctionNetwork(f, (3, 6, 6)))
    images = np.random.default_rng(2).integers(0, 256, (3, 3, 6, 6), dtype=np.uint8)
    table = clf.errors(images, draws=25, loss=loss, streams=np.arange(3))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = np.cumprod(1 - betas)
    ratio = np.sqrt((1 - alpha_bar) / alpha_bar)
    losses: dict[str, Callable[..., Any]] = {
        "l2": functional.mse_loss,
        "l1": functional.l1_loss,
        "huber": functional.huber_loss,
    }
    want = np.zeros(table.errors.shape)
    for i, image in enumerate(images):
        x = image.astype(np.float64) / 127.5 - 1
        for j in range(table.draws):
            t = int(np.argmin(np.abs(ratio - table.sigma[j])))
            e = reference.normal(0, i, j, x.size).reshape(x.shape)
            x_t = math.sqrt(alpha_bar[t]) * x + math.sqrt(1 - alpha_bar[t]) * e
            said = f(np.repeat(x_t[None], 4, axis=0), np.full(4, float(t)), np.arange(4))
            for k in range(4):
                want[i, k, j] = float(losses[loss](torch.from_numpy(said[k]), torch.from_numpy(e)))
    against = f"algorithm 1 as a loop, torch's {losses[loss].__name__}"
    return Row(f"Li et al.: errors, loss {loss}", against, f"{want.size} errors", apart(table.errors, want), ERROR)


# Flags of Li et al.: (n_samples, to_keep, classes, evaluations in their table, evaluations of their code). Their table
# has 1890 for Pets, which does not follow from its flags.
LI = {
    "food": ((20, 50, 100, 500), (20, 10, 5, 1), 101, 5120, 5570),
    "flowers": ((20, 50, 100, 500), (20, 10, 5, 1), 102, 5140, 5590),
    "imagenet": ((50, 100, 500, 1000), (500, 50, 10, 1), 1000, 100_000, 124_500),
    "objectnet": ((50, 100, 500, 1000), (25, 10, 5, 1), 113, 13_400, 14_400),
    "aircraft": ((20, 50, 100, 500), (20, 10, 5, 1), 100, 5100, 5550),
    "cifar10": ((50, 500), (5, 1), 10, 2750, 2750),
    "stl10": ((100, 500), (5, 1), 10, 3000, 3000),
}


def li_budgets() -> Row:
    wrong = sum(Staged(n, keep).evaluations(k) != paper for n, keep, k, paper, _ in LI.values())
    what, against = "Li et al.: staged pruning, evaluations", "the table of the paper"
    return Row(what, against, f"{len(LI)} data sets", wrong, 0)


def li_grids() -> Row:
    """compat="li": the grids as slices of a range, stage by stage, as in eval_prob_adaptive.py."""
    wrong = 0
    flags: list[tuple[int, ...]] = [*(entry[0] for entry in LI.values()), (75, 200), (3, 7, 40), (10, 1000)]
    for n_samples in flags:
        most = max(n_samples)
        grid = list(range(1000 // most // 2, 1000, 1000 // most))[:most]
        evaluated: list[int] = []
        ends = []
        for count in n_samples:
            stage = [t for t in grid[len(grid) // count // 2 :: len(grid) // count][:count] if t not in evaluated]
            evaluated += stage
            ends.append(len(evaluated))
        rule = Staged(n_samples, (1,) * len(n_samples), compat="li")
        wrong += (rule.timesteps, rule.looks(most)) != (tuple(evaluated), tuple(ends))
    wrong += sum(Staged(n, keep, compat="li").evaluations(k) != code for n, keep, k, _, code in LI.values())
    against = "the released code's slices, and its evaluations"
    return Row('Li et al.: timesteps of compat="li"', against, f"{len(flags)} settings", wrong, 0)


def clark_jaini_test() -> Row:
    """Algorithm 1 of Clark & Jaini with scipy's paired t-test, one draw at a time."""
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(4)
    n, classes, draws = 25, 6, 60
    errors = (rng.random((n, 1, draws)) + 0.4 * rng.standard_normal((n, classes, draws))).astype(np.float32) + 2
    errors += 0.1 * np.arange(classes, dtype=np.float32)[:, None]
    rule = TTest(20, 2e-3)
    got = replay(rule, errors)
    wrong = 0
    for i in range(n):
        alive, counts = list(range(classes)), np.zeros(classes, int)
        for m in range(1, draws + 1):
            counts[alive] = m
            scores = errors[i, :, :m].astype(np.float64)
            best = min(alive, key=lambda k: scores[k].mean())
            if m >= 20 and len(alive) > 1:
                alive = [k for k in alive if k == best or ttest_rel(scores[k], scores[best]).pvalue >= 2e-3]
            if len(alive) == 1:
                break
        label = min(alive, key=lambda k: errors[i, k, : counts[k]].astype(np.float64).mean())
        wrong += label != got.labels()[i] or counts.tolist() != got.counts[i].tolist()
    what, against = "Clark & Jaini: elimination by t-tests", "algorithm 1 with scipy.stats.ttest_rel"
    return Row(what, against, f"{n} images: labels, counts", wrong, 0)


# --- Chen et al., arXiv 2402.02316 -----------------------------------------------------------------------------------


def released_density(s: float) -> float:
    """p_x of the released code: it multiplies by P_std^2 in the exponent."""
    return 1 / (s * 1.2 * math.sqrt(2 * math.pi)) * math.exp(-((math.log(s) + 1.2) ** 2) / 2 * 1.2**2)


def edm_weight(s: float) -> float:
    return (s**2 + 0.25) / (0.5 * s) ** 2


def ndc_model() -> Model:
    return Model("edm", (1, 4, 4), ("a", "b"), EDMSchedule(), Parameterization("edm", 0.5))


def ndc_apndc() -> Row:
    """Levels s_{i+1} with edm(s_{i+1}) p(s_i) (s_{i+1} - s_i), i = 0 ... steps - 3."""
    worst, count = 0.0, 0
    for sigma, steps in ((0.25, 126), (0.5, 126), (1.0, 126), (0.25, 1001)):
        model = ndc_model()
        config = plan_config(model, released_plan(model, "apndc", sigma, steps=steps))
        plan = make_plan(model.schedule, model.parameterization, config)
        grid = np.linspace(2 * sigma, 3, steps).tolist()
        levels = [grid[i + 1] for i in range(steps - 2)]
        weights = [
            edm_weight(grid[i + 1]) * released_density(grid[i]) * (grid[i + 1] - grid[i]) for i in range(steps - 2)
        ]
        worst = max(worst, apart(plan.levels.sigma, levels), apart(plan.rows[:, 6], weights))
        count += steps - 2
    what, against = 'NDC: apndc, compat="ndc"', "the released code's grid and weights"
    return Row(what, against, f"{count} levels", worst, ROW)


def ndc_epndc() -> Row:
    """The squared difference of the posteriors' means at s_i, weighted as the code does, network at s_{i+1}; i >= 5."""
    rng = np.random.default_rng(0)
    worst, count = 0.0, 0
    for sigma in (0.25, 0.5):
        tau, model = 2 * sigma, ndc_model()
        config = plan_config(model, released_plan(model, "epndc", sigma))
        rows = make_plan(model.schedule, model.parameterization, config).rows.astype(np.float64)
        grid = np.linspace(tau, 3, 126).tolist()
        for (_, _, a, b, c, _, weight, _), i in zip(rows, range(5, 124), strict=True):
            s, after = grid[i], grid[i + 1]
            x_tau, e, f = rng.standard_normal(3)
            x_after = x_tau + math.sqrt(after**2 - tau**2) * e
            total = after**2 + 0.25
            h = 0.25 / total * x_after + 0.5 * after / math.sqrt(total) * f
            p_mean = ((after**2 - s**2) * h + s**2 * x_after) / after**2
            q_mean = ((after**2 - s**2) * x_tau + (s**2 - tau**2) * x_after) / (after**2 - tau**2)
            ratio = after**2 * (after**2 - tau**2) / (4 * (after - s) ** 2 * (s**2 - tau**2))
            want = edm_weight(s) * released_density(s) * (after - s) * ratio * (p_mean - q_mean) ** 2
            r = a * f + b * x_tau + c * e
            # The residual is a difference: its float32 coefficients round to 1e-7 of its largest term.
            terms = max(abs(a * f), abs(b * x_tau), abs(c * e))
            worst = max(worst, abs(math.sqrt(want / weight) - abs(r)) / terms)
            count += 1
    what, against = 'NDC: epndc, compat="ndc"', "the released code's posterior means and weights"
    return Row(what, against, f"{count} levels", worst, ROW)


def ndc_errors(method: str) -> Row:
    """The noised classifiers with an unconditional model, in a world where all estimates are formulas."""
    world = GaussianWorld.random(3, seed=5)
    bare = GaussianWorld(world.means.mean(axis=0, keepdims=True), 0.6)  # another model, with its own denoiser
    clf, other = (DiffusionClassifier(one.model, one.network()) for one in (world, bare))
    tau, images = 0.5, np.random.default_rng(6).random((4, 1, 4, 4), dtype=np.float32)
    options: dict[str, Any] = {"denoiser": other} if method != "epndc" else {}
    table = clf.errors(
        images,
        draws=9,
        method=method,
        sigma=tau / 2,
        levels=(0.6, 3.0),
        streams=np.arange(4),
        weighting="edm",
        **options,
    )
    want = np.zeros(table.errors.shape)
    for i, image in enumerate(images.astype(np.float64)):
        x_tau = 2 * image - 1
        h = bare.denoise(x_tau[None], np.array([tau]), np.array([0]))[0]
        for j, s in enumerate(table.sigma.tolist()):
            e = reference.normal(0, i, j, 16).reshape(1, 4, 4)
            if method == "apndc":
                x_s, target = h + s * e, h
            else:
                x_s = x_tau + math.sqrt(s**2 - tau**2) * e
                target = h if method == "apndc-x" else (s**2 * x_tau - tau**2 * x_s) / (s**2 - tau**2)
            said = world.denoise(np.repeat(x_s[None], 3, axis=0), np.full(3, s), np.arange(3))
            want[i, :, j] = edm_weight(s) * ((said - target) ** 2).mean(axis=(1, 2, 3))
    against = "a float64 loop" + ("" if method == "epndc" else ", x_tau denoised by a second, unconditional model")
    return Row(f"NDC: errors of {method}", against, f"{want.size} errors", apart(table.errors, want), ERROR)


# --- Cohen et al., arXiv 1902.02918 ----------------------------------------------------------------------------------


def cohen_certify() -> Row:
    """Smooth.certify: proportion_confint(nA, n, alpha=2 alpha, method="beta")[0], abstain below 1/2, sigma Phi^-1."""
    from scipy.stats import norm

    proportion = require("statsmodels.stats.proportion", extra="dev")
    sigma, alpha, worst, cases = 0.25, 0.001, 0.0, 0
    for n in (100, 1000, 10_000):
        fixed = Fixed(sigma, n, alpha)
        for successes in np.unique(np.linspace(0, n, 401).astype(int)).tolist():
            bound = proportion.proportion_confint(successes, n, alpha=2 * alpha, method="beta")[0]
            want = None if bound < 0.5 else sigma * norm.ppf(bound)
            verdict = fixed.verdict(successes, n)
            assert verdict is not None
            cases += 1
            if (want is None) != (verdict.radius is None):
                return Row("Cohen: certify", "", f"{successes} of {n} abstains on one side only", math.inf, 0)
            if want is not None and verdict.radius is not None:
                worst = max(worst, abs(verdict.radius - want))
    what, against = "Cohen: bound, abstention, radius", "Smooth.certify: statsmodels' and SciPy's functions"
    return Row(what, against, f"{cases} counts", worst, 1e-12)


def cohen_predict() -> Row:
    """Smooth.predict: abstain if binom_test(count1, count1 + count2, p=0.5) > alpha."""
    from scipy.stats import binomtest

    wrong, cases = 0, 0
    for n in (10, 100, 1000):
        for top in range(-(-n // 2), n + 1, max(1, n // 100)):
            abstains = binomtest(top, n, 0.5).pvalue > 0.001
            verdict = Predict(0.25, 0.001).begin(np.array([n - top, top, 0]))
            wrong += (verdict.radius is None) != abstains
            cases += 1
    return Row("Cohen: predict", "Smooth.predict: SciPy's binomial test", f"{cases} counts", wrong, 0)


def cohen_published() -> Row:
    """Most radius / sigma at alpha = 0.001, and fewest correct copies of 10,000, as printed in papers (two digits)."""
    n = np.array([100, 1000, 10_000, 100_000])
    radii = certified_radius(clopper_pearson(n, n, 0.001), 1.0)
    counts = {1.0: 8526, 1.5: 9409, 2.0: 9818, 3.0: 9997}
    wrong = int((radii.round(2) != [1.5, 2.46, 3.2, 3.81]).sum())
    reached = certified_radius(clopper_pearson(np.arange(10_001), 10_000, 0.001), 1.0)
    wrong += sum(int(np.argmax(reached > radius)) != correct for radius, correct in counts.items())
    return Row("Cohen: largest radii, fewest copies", "published values", f"{len(n) + len(counts)} values", wrong, 0)


ROWS: dict[str, Callable[[], Row]] = {
    "philox": philox,
    "normals": normals,
    "edm": edm,
    "velocity": velocity,
    "li-l2": partial(li_errors, "l2"),
    "li-l1": partial(li_errors, "l1"),
    "li-huber": partial(li_errors, "huber"),
    "li-budgets": li_budgets,
    "li-grids": li_grids,
    "clark-jaini-weight": clark_jaini_weight,
    "clark-jaini-test": clark_jaini_test,
    "ndc-apndc": ndc_apndc,
    "ndc-epndc": ndc_epndc,
    "errors-apndc": partial(ndc_errors, "apndc"),
    "errors-apndc-x": partial(ndc_errors, "apndc-x"),
    "errors-epndc": partial(ndc_errors, "epndc"),
    "cohen-certify": cohen_certify,
    "cohen-predict": cohen_predict,
    "cohen-published": cohen_published,
}


def main() -> None:
    """Prints the table; ends with an error if a difference is larger than rounding explains."""
    rows = [make() for make in ROWS.values()]
    columns = ["formula", "compared with", "cases", "largest difference", "allowed", "NAME"]
    shown = [[row.what, row.against, row.cases, _number(row.difference), _number(row.allowed)] for row in rows]
    table = [[*line, name] for line, name in zip(shown, ROWS, strict=True)]
    print_table("fastdc and the published formulas", columns, table)
    if wrong := [row.what for row in rows if not row.difference <= row.allowed]:
        raise SystemExit(f"larger than rounding: {'; '.join(wrong)}")


def _number(value: float) -> str:
    return f"{value:.1e}" if value else "0"


if __name__ == "__main__":
    main()
