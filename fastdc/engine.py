"""The engine: turns cells into errors, a step at a time, with every slot of the network busy.

A step is: cell table in, noise and scale (``ops.add_noise``), the network, error (``ops.denoising_error``), one float a
cell out. Steps of different slots run at once, each on its own thread; the rule is asked for cells and told errors on
the caller's thread only. Cells of all images are packed together, so that no step but the last ones runs part-filled.

No number depends on batch, slots, threads or order: noise is a function of (seed, stream, draw), and an error is a sum
in a fixed order over one cell. What a backend's network may add is its own business (docs/architecture.md).
"""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import numpy as np
import numpy.typing as npt

from fastdc import ops
from fastdc.backends.base import AbstractNetwork, AbstractSlot
from fastdc.cells import AbstractRule, Cells
from fastdc.errors import ErrorTable
from fastdc.exceptions import BackendError
from fastdc.model import Model
from fastdc.plan import Plan

Progress = Callable[[int, int], None]
"""Called with (cells evaluated so far, cells evaluated and still to come at most)."""


class Step:
    """One slot of a network, bound to the images, plan and noise of a run.

    Args:
        network: The network the slot belongs to.
        slot: Its buffers.
        run: What the cells refer to.
    """

    def __init__(self, network: AbstractNetwork, slot: AbstractSlot, run: "Run") -> None:
        self._network = network
        self._slot = slot
        self._run = run
        self._views: dict[int, tuple[ops.TensorView, ...]] = {}

    def evaluate(self, cells: Cells) -> npt.NDArray[np.float32]:
        """The errors (m,) of m <= batch cells.

        Raises:
            BackendError: An error is not finite, as when half precision overflows.
        """
        count = len(cells)
        run, slot, network = self._run, self._slot, self._network
        views = self._views.get(count)
        if views is None:
            buffers = (slot.cells, slot.sample, slot.timestep, slot.class_labels, slot.output, slot.errors)
            views = self._views[count] = tuple(ops.view(buffer[:count]) for buffer in buffers)
        table, sample, timestep, labels, output, errors = views
        network.write(slot.cells, cells)
        ops.add_noise(
            run.images,
            table,
            run.rows,
            run.streams,
            seed=run.seed,
            out=sample,
            timestep=timestep,
            labels=labels,
            n_classes=run.n_classes,
            stream=network.stream,
        )
        slot.run(count)
        ops.denoising_error(
            output,
            run.images,
            table,
            run.rows,
            run.streams,
            seed=run.seed,
            out=errors,
            loss=run.loss,
            delta=run.delta,
            n_classes=run.n_classes,
            stream=network.stream,
        )
        result = network.read(slot.errors, count)
        if not np.all(np.isfinite(result)):  # in a table NaN means "not evaluated"
            image, label, draw = cells[np.argmin(np.isfinite(result))].tolist()
            raise BackendError(
                f"the network's error is not finite at image {image}, class {label}, draw {draw} in {network.precision}"
            )
        return result


class Run:
    """The arrays that cells index, placed where the network runs.

    Args:
        network: Where to place them.
        images: float32 (n, c, h, w) in the model's value range.
        streams: int64 (n,), the noise stream of each image.
        plan: The draws.
        seed: Philox key.
        n_classes: K.
    """

    def __init__(
        self,
        network: AbstractNetwork,
        images: npt.NDArray[np.float32],
        streams: npt.NDArray[np.int64],
        plan: Plan,
        seed: int,
        n_classes: int,
    ) -> None:
        placed = (network.place(array) for array in (images, plan.rows, streams))
        self.images, self.rows, self.streams = map(ops.view, placed)  # a view keeps its array alive
        self.seed = seed
        self.n_classes = n_classes
        self.loss = plan.config.loss
        self.delta = plan.config.delta


def evaluate(network: AbstractNetwork, run: Run, rule: AbstractRule, *, progress: Progress | None = None) -> int:
    """Evaluates what the rule proposes until it proposes nothing more.

    Args:
        network: The network.
        run: What the cells refer to.
        rule: Which cells; told the errors as they come.
        progress: Called after every step.

    Returns:
        The number of cells evaluated.

    Raises:
        KeyboardInterrupt: After the steps in flight have ended; the rule has observed all that was finished.
    """
    steps = [Step(network, slot, run) for slot in network.slots]
    if len(steps) == 1:
        return _evaluate_alone(steps[0], network.batch, rule, progress)
    done = 0
    idle = list(steps)
    in_flight: dict[Future[npt.NDArray[np.float32]], tuple[Step, Cells]] = {}

    def flying() -> int:
        return sum(len(cells) for _, cells in in_flight.values())

    def room() -> int:
        """Cells of the next step: a full batch, or near the end an even share, so that no slot idles while one works.

        What is in flight counts as well: shares of the rest alone would halve from step to step, down to single cells.
        """
        return min(network.batch, rule.remaining, -(-(rule.remaining + flying()) // len(steps)))

    def collect(finished: set[Future[npt.NDArray[np.float32]]]) -> int:
        cells_done = 0
        for future in finished:
            step, cells = in_flight.pop(future)
            rule.observe(cells, future.result())
            idle.append(step)
            cells_done += len(cells)
        return cells_done

    with ThreadPoolExecutor(len(steps), thread_name_prefix="fastdc-step") as pool:
        try:
            while True:
                while idle and rule.remaining:
                    cells = rule.propose(room())
                    if not len(cells):
                        break
                    step = idle.pop()
                    in_flight[pool.submit(step.evaluate, cells)] = (step, cells)
                if not in_flight:
                    return done
                finished, _ = wait(in_flight, return_when=FIRST_COMPLETED)
                done += collect(finished)
                if progress is not None:
                    progress(done, done + flying() + rule.remaining)
        except KeyboardInterrupt:
            wait(in_flight)
            collect({future for future in in_flight if future.exception() is None})
            raise


def _evaluate_alone(step: Step, batch: int, rule: AbstractRule, progress: Progress | None) -> int:
    done = 0
    while remaining := rule.remaining:
        cells = rule.propose(min(batch, remaining))
        if not len(cells):
            break
        rule.observe(cells, step.evaluate(cells))
        done += len(cells)
        if progress is not None:
            progress(done, done + rule.remaining)
    return done


class TableRule:
    """Wraps a rule to write every error it observes into an array (n, K, J)."""

    def __init__(self, rule: AbstractRule, errors: npt.NDArray[np.float32]) -> None:
        self._rule = rule
        self._errors = errors

    @property
    def remaining(self) -> int:
        """See ``cells.AbstractRule``."""
        return self._rule.remaining

    def propose(self, room: int) -> Cells:
        """See ``cells.AbstractRule``."""
        return self._rule.propose(room)

    def observe(self, cells: Cells, errors: npt.NDArray[np.float32]) -> None:
        """See ``cells.AbstractRule``."""
        self._errors[cells[:, 0], cells[:, 1], cells[:, 2]] = errors
        self._rule.observe(cells, errors)


def fill_table(
    network: AbstractNetwork,
    model: Model,
    images: npt.NDArray[np.float32],
    streams: npt.NDArray[np.int64],
    plan: Plan,
    rule: AbstractRule,
    *,
    seed: int,
    progress: Progress | None = None,
) -> ErrorTable:
    """Evaluates a rule into a new ErrorTable.

    Args:
        network: The network.
        model: The model it belongs to.
        images: float32 (n, c, h, w) in the model's value range.
        streams: int64 (n,), the noise stream of each image.
        plan: The draws.
        rule: Which cells.
        seed: Philox key.
        progress: Called after every step.

    Returns:
        The table, NaN where the rule evaluated nothing.
    """
    errors = np.full((len(images), model.num_classes, plan.draws), np.nan, np.float32)
    run = Run(network, images, streams, plan, seed, model.num_classes)
    evaluate(network, run, TableRule(rule, errors), progress=progress)
    return ErrorTable.from_errors(model, plan, streams, seed, errors)
