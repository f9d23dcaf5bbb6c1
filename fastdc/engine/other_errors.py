"""Further errors of the cells of a run: other coefficients of the residual, other losses, the same network outputs.

The network's output F of a cell says everything about the residual r = a F + b x + c e + d z under every weighting and
loss. Choosing between these takes the errors under all of them, and the network, which is the bulk of the work, only
once: after each step, the kernel that made its errors runs again with other rows or another loss. The scheduler knows
nothing of it, since what it decides depends on the run's own errors only.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fastdc.diffusion import ROW_FIELDS, Plan
from fastdc.engine.requests import Cells
from fastdc.support import Float32, InputError

_INPUTS = [ROW_FIELDS.index(name) for name in ("gx", "ge", "timestep")]


class OtherErrors:
    """The errors of a full run's cells under further plans.

    Args:
        plan: Plan of the run.
        others: Plans that show the network the same inputs.
        images: Number n of images, whose requests have the keys 0 ... n - 1.
        n_classes: K.

    Attributes:
        plans: The further plans.
        errors: float32 (n, K, J) for each of them; NaN where not evaluated.

    Raises:
        InputError: A plan shows the network other inputs, or denoises images first.

    Example:
        >>> from fastdc.engine import OtherErrors
        >>> plan = clf.settings(draws=4).job.plan
        >>> OtherErrors(plan, [clf.settings(draws=4, loss="l1").job.plan], images=2, n_classes=10).errors[0].shape
        (2, 10, 4)
    """

    def __init__(self, plan: Plan, others: Sequence[Plan], *, images: int, n_classes: int) -> None:
        for one in (plan, *others):
            same = np.array_equal(one.rows[:, _INPUTS], plan.rows[:, _INPUTS]) and one.antithetic == plan.antithetic
            if not same or one.method.denoises:
                raise InputError(
                    f"plans must show the network the same inputs and denoise nothing, got {one.config} beside "
                    f"{plan.config}"
                )
        self.plans = tuple(others)
        shape = (images, n_classes, plan.draws)
        self.errors = tuple(np.full(shape, np.nan, np.float32) for _ in self.plans)

    def put(self, number: int, cells: Cells, key: Callable[[int], int], errors: Float32) -> None:
        """Takes errors (m,) of cells (m, 3) under a plan; callable from several threads, as no two share a cell."""
        images = [key(place) for place in cells[:, 0].tolist()]
        self.errors[number][images, cells[:, 1], cells[:, 2]] = errors
