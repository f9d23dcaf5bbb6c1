"""The plan of a run: the noise level of every draw, in an order of which every prefix covers the band.

Positions in the band follow the van der Corput sequence in base 2, u_j = 0.1b reversed: 1/2, 1/4, 3/4, 1/8, 5/8, ...
After 2^m - 1 draws they are exactly the multiples of 2^-m, and any prefix is within a factor two of evenly spaced. In
order "random", positions are independent and uniform. Levels given as ``first`` come before either order, and
``timesteps`` gives all levels. A longer plan starts with the shorter one, so that a run can be extended, or stopped
early, without evaluating a cell twice.

Antithetic draws come in pairs (2i, 2i + 1) of one level and of the noises e and -e (Jia et al., arXiv 2506.06185): the
part of the error that is odd in e cancels in the pair's mean. The rows hold the sign, u = gx x - ge e and
r = a F + b x - c e + d z.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastdc.diffusion.kernels import LOSSES, ROW_FIELDS
from fastdc.diffusion.level_weights import LevelWeights
from fastdc.diffusion.levels import AbstractSchedule, Levels
from fastdc.diffusion.noisy_methods import MEAN, Method, method_of
from fastdc.diffusion.parameterization import Parameterization
from fastdc.diffusion.stepped_schedules import SteppedSchedule
from fastdc.diffusion.weighting import weighting
from fastdc.support import Float32, Float64, InputError, checks, shown

MAX_DRAWS = 1_000_000
ORDERS = ("van_der_corput", "random")


def van_der_corput(count: int) -> Float64:
    """Returns elements 1 ... count of the base-2 van der Corput sequence, float64 (count,), all in (0, 1)."""
    # Not scipy.stats.qmc, which gives the same numbers: importing it costs every first classification a second.
    index = np.arange(1, count + 1, dtype=np.uint64)
    result = np.zeros(count)
    scale = 0.5
    while np.any(index):
        result += scale * (index & np.uint64(1)).astype(np.float64)
        index >>= np.uint64(1)
        scale /= 2
    return result


def random_positions(count: int, seed: int) -> Float64:
    """Makes the first `count` independent uniform numbers of a seed.

    The numbers are the top 52 bits of the words of NumPy's Philox with the key `seed`. NumPy keeps the words of its bit
    generators stable across versions, but not the numbers that its Generator makes from them.

    Args:
        count: Number of numbers, from 0.
        seed: Key, in [0, 2^64).

    Returns:
        float64 (count,), all in (0, 1).

    Example:
        >>> from fastdc.diffusion import random_positions
        >>> bool((random_positions(3, seed=1) == random_positions(9, seed=1)[:3]).all())
        True
    """
    words = np.random.Philox(key=seed).random_raw(count) >> np.uint64(12)
    return np.asarray((words.astype(np.float64) + 0.5) * 2.0**-52)


@dataclass(frozen=True)
class PlanConfig:
    """Options of a plan; plain values, stored with every result.

    Attributes:
        draws: Number J of (noise level, noise) pairs, the same for all classes; from 1 to 1 000 000.
        levels: Band of noise levels, as noise-to-signal ratios sigma / alpha (low, high) in units of x in the model's
            value range; None: the whole schedule.
        weighting: One of ``weighting.WEIGHTINGS``.
        loss: "l2", "l1" or "huber".
        delta: Threshold of the Huber loss, positive.
        first: Noise-to-signal ratios of the first draws, inside the schedule and not necessarily inside `levels`; the
            order begins after them. A rule that may stop early learns most from the most informative levels.
        order: One of :data:`ORDERS`. "van_der_corput" spreads every prefix evenly over the band. It gives the most
            accurate mean for a number of draws; use it unless a guarantee requires "random", whose positions are
            independent and uniform. An anytime-valid rule bounds the probability of a wrong decision unconditionally
            only if draws are independent and identically distributed; draws of a fixed sequence (and of `first`) are
            not.
        order_seed: Seed of the positions of order "random", in [0, 2^64).
        timesteps: Step of a ``SteppedSchedule`` for each of the J draws, in order; excludes `levels`, `first`, `order`
            and `antithetic`. For plans published as lists of timesteps.
        level_weights: Fitted curve that multiplies the weights of `weighting`, or None.
        antithetic: Whether draws 2i and 2i + 1 share a level, the i-th of the sequence, and see noises e and -e. Errors
            of different pairs are independent, those within a pair are not: a rule must count pairs.
        method: One of ``noisy_methods.METHODS``.
        noise: Noise-to-signal ratio tau of the images themselves, from 0; needed by every method but "dc".
        denoiser: What makes h(x_tau), for methods that need it: None for the model itself without a class,
            ``noisy_methods.MEAN`` for its mean over all classes, or the name of another model.
    """

    draws: int
    levels: tuple[float, float] | None = None
    weighting: str = "uniform"
    loss: str = "l2"
    delta: float = 1.0
    first: tuple[float, ...] = ()
    order: str = "van_der_corput"
    order_seed: int = 0
    timesteps: tuple[int, ...] | None = None
    level_weights: LevelWeights | None = None
    antithetic: bool = False
    method: str = "dc"
    noise: float = 0.0
    denoiser: str | None = None

    def __post_init__(self) -> None:
        # Python's own types: a float32 would compute the plan in float32, and a stored config would not repeat it.
        object.__setattr__(self, "draws", checks.whole("draws", self.draws, high=MAX_DRAWS))
        object.__setattr__(self, "delta", checks.positive("delta", self.delta))
        object.__setattr__(self, "antithetic", checks.flag("antithetic", self.antithetic))
        checks.one_of("loss", self.loss, LOSSES)
        weighting(self.weighting)
        if self.level_weights is not None and not isinstance(self.level_weights, LevelWeights):
            raise InputError(f"level_weights must be LevelWeights or None, got {shown(self.level_weights)}")
        self._check_levels()
        self._check_order()
        self._check_timesteps()
        self._check_method()

    def _check_method(self) -> None:
        method = method_of(self.method)
        object.__setattr__(self, "noise", checks.positive("noise", self.noise, zero=True))
        if self.method != "dc" and self.noise == 0:
            raise InputError(f"method {self.method} is for noisy images: expected their noise, got 0")
        if self.denoiser is not None and not (isinstance(self.denoiser, str) and self.denoiser):
            raise InputError(f"denoiser must be a name or None, got {shown(self.denoiser)}")
        if self.denoiser is not None and not method.denoises:
            raise InputError(f"method {self.method} does not denoise: expected no denoiser")
        lowest = min((*self.first, *(self.levels or ())), default=float("inf"))
        if method.above and lowest <= self.noise:
            raise InputError(
                f"method {self.method} needs levels above the images' noise {self.noise:.4g} (sigma / alpha), "
                f"got {lowest:.4g}"
            )

    def _check_levels(self) -> None:
        if self.levels is not None:
            pair = isinstance(self.levels, (tuple, list)) and len(self.levels) == 2
            numbers = pair and all(map(checks.is_finite, self.levels))
            if not (numbers and 0 < self.levels[0] < self.levels[1]):
                came = "{:g} and {:g}".format(*self.levels) if numbers else shown(self.levels)
                raise InputError(f"levels must be two ratios, low and high, with 0 < low < high, got {came}")
            object.__setattr__(self, "levels", (float(self.levels[0]), float(self.levels[1])))
        ratios = self.first if isinstance(self.first, (tuple, list)) else (None,)
        if not all(checks.is_finite(ratio) and ratio > 0 for ratio in ratios):
            raise InputError(f"first must be positive noise-to-signal ratios, got {shown(self.first)}")
        object.__setattr__(self, "first", tuple(map(float, self.first)))

    def _check_order(self) -> None:
        checks.one_of("order", self.order, ORDERS)
        object.__setattr__(self, "order_seed", checks.seed(self.order_seed, "order_seed"))
        if self.order_seed and self.order != "random":
            raise InputError(f"order_seed is for order 'random', got {self.order_seed} with order {shown(self.order)}")

    def _check_timesteps(self) -> None:
        if self.timesteps is None:
            return
        steps = self.timesteps if isinstance(self.timesteps, (tuple, list)) else (None,)
        if not all(checks.is_whole(step) and step >= 0 for step in steps):
            raise InputError(f"timesteps must be whole numbers from 0, got {shown(self.timesteps)}")
        if len(steps) != self.draws:
            raise InputError(f"timesteps must be one for each of {self.draws} draws, got {len(steps)}")
        if self.levels is not None or self.first or self.order != ORDERS[0] or self.antithetic:
            raise InputError("timesteps are the whole plan: expected no levels, first, order or antithetic beside them")
        object.__setattr__(self, "timesteps", tuple(map(int, self.timesteps)))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        entry = {
            "draws": self.draws,
            "levels": None if self.levels is None else list(self.levels),
            "weighting": self.weighting,
            "loss": self.loss,
            "delta": self.delta,
            "first": list(self.first),
            "order": self.order,
            "order_seed": self.order_seed,
            "timesteps": None if self.timesteps is None else list(self.timesteps),
            "level_weights": None if self.level_weights is None else self.level_weights.to_dict(),
            "antithetic": self.antithetic,
            "method": self.method,
            "noise": self.noise,
        }
        return entry if self.denoiser is None else {**entry, "denoiser": self.denoiser}

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> "PlanConfig":
        """Makes the config of an entry that :meth:`to_dict` returned. Options missing from it have their defaults.

        Raises:
            InputError: The number of draws is missing, an option is unknown, or a value is out of range.
        """
        unknown = set(entry) - set(cls.__dataclass_fields__)
        if unknown or "draws" not in entry:
            problem = f"has no option {shown(min(unknown, key=str))}" if unknown else "needs a number of draws"
            raise InputError(f"a plan {problem}")
        curve = entry.get("level_weights")
        return cls(**{**entry, "level_weights": None if curve is None else LevelWeights.from_dict(curve)})


@dataclass(frozen=True, eq=False)
class Plan:
    """The draws of a run.

    Attributes:
        config: Options of the plan.
        levels: Noise levels of the J draws, in order.
        rows: float32 (J, 8), the coefficient rows with the columns of ``kernels.ROW_FIELDS``.
        denoising_row: float32 (1, 8), a row whose residual is h(x_tau) itself, at the schedule's level nearest to tau;
            None if the model does not make h(x_tau).
    """

    config: PlanConfig
    levels: Levels
    rows: Float32 = field(repr=False)
    denoising_row: Float32 | None = field(default=None, repr=False)

    @property
    def draws(self) -> int:
        """Number of draws J."""
        return len(self.levels)

    @property
    def method(self) -> Method:
        """The method for noisy images."""
        return method_of(self.config.method)

    @property
    def antithetic(self) -> bool:
        """Whether the kernels must make one noise for each pair of draws; the rows hold the signs."""
        return self.config.antithetic


def _positions(schedule: AbstractSchedule, config: PlanConfig) -> Float64:
    """Returns the position of each draw's level on the schedule, float64 (J,) in [0, 1]."""
    if config.timesteps is not None:
        if not isinstance(schedule, SteppedSchedule):
            raise InputError(f"timesteps need a discrete schedule, got {schedule.to_dict()}")
        steps = len(schedule.alphas_cumprod)
        if max(config.timesteps) >= steps:
            raise InputError(f"timesteps must be below {steps}, got {max(config.timesteps)}")
        return (np.asarray(config.timesteps, dtype=np.float64) + 0.5) / steps
    low, high = 0.0, 1.0
    if config.levels is not None:
        low, high = (schedule.position_of(ratio) for ratio in config.levels)
        if not low < high:
            raise InputError(f"levels {config.levels} lie outside the schedule {schedule.to_dict()!s:.200}")
    different = -(-config.draws // 2) if config.antithetic else config.draws
    count = max(0, different - len(config.first))
    order = van_der_corput(count) if config.order == "van_der_corput" else random_positions(count, config.order_seed)
    positions = np.concatenate([_first_positions(schedule, config.first), low + (high - low) * order])
    return (np.repeat(positions, 2) if config.antithetic else positions)[: config.draws]


def _first_positions(schedule: AbstractSchedule, first: tuple[float, ...]) -> Float64:
    return np.array([_position(schedule, ratio, "first") for ratio in first], dtype=np.float64)


def _position(schedule: AbstractSchedule, ratio: float, name: str) -> float:
    """Returns the position of a noise-to-signal ratio inside the schedule."""
    low, high = schedule.levels([0.0, 1.0]).ratio.tolist()
    if not low * (1 - 1e-9) <= ratio <= high * (1 + 1e-9):  # position_of would silently take the nearest
        raise InputError(f"{name} must lie in the schedule's {low:.4g} to {high:.4g}, got {ratio:.4g}")
    return schedule.position_of(ratio)


def make_plan(schedule: AbstractSchedule, parameterization: Parameterization, config: PlanConfig) -> Plan:
    """Makes the plan of a configuration for a model.

    Args:
        schedule: The model's noise schedule.
        parameterization: The kind of its network's prediction.
        config: Options of the plan.

    Returns:
        The plan.

    Raises:
        InputError: A level, or a noise that is to be removed, lies outside the schedule, the band does not overlap it,
            timesteps are given for a schedule that is not discrete, or a coefficient is not finite.

    Example:
        >>> from fastdc.diffusion import EDMSchedule, Parameterization, PlanConfig, make_plan
        >>> make_plan(EDMSchedule(), Parameterization("epsilon"), PlanConfig(draws=3)).rows.shape
        (3, 8)
    """
    levels = schedule.levels(_positions(schedule, config))
    rule = weighting(config.weighting)
    weights = rule.weight(levels, parameterization.sigma_data)
    if config.level_weights is not None:
        weights = weights * config.level_weights.at(levels.ratio)
    method = method_of(config.method)
    if config.method == "dc":
        rows = parameterization.rows(levels, weights, rule.space)
    else:
        added, target = method.added(levels.ratio, config.noise), method.target(levels.ratio, config.noise)
        rows = parameterization.rows(levels, weights, rule.space, added=added, target=target)
    if config.antithetic:
        rows[1::2, [ROW_FIELDS.index("ge"), ROW_FIELDS.index("c")]] *= -1
    own = method.denoises and config.denoiser in (None, MEAN)
    row = _denoising_row(schedule, parameterization, config.noise) if own else None
    return Plan(config=config, levels=levels, rows=rows, denoising_row=row)


def _denoising_row(schedule: AbstractSchedule, parameterization: Parameterization, tau: float) -> Float32:
    """Makes the row of u = scale alpha x_tau and r = D(x_tau) at the schedule's level nearest to tau; adds no noise."""
    levels = schedule.levels([_position(schedule, tau, "the images' noise (sigma / alpha)")])
    zero = np.zeros(1)
    return parameterization.rows(levels, 1.0, "x0", added=zero, target=(zero, zero, zero))
