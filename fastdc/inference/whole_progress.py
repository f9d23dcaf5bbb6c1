"""The progress of several runs, one after another, as that of one."""

from fastdc.inference.results import OnProgress, Progress


class WholeProgress:
    """Takes the progress of each run and reports that of all of them.

    Args:
        report: Called after every step.
        images: Number of images of all runs together; an image counts in each run that it is in.
        evaluations: The most evaluations of all runs together.

    Example:
        >>> from fastdc.inference import WholeProgress
        >>> states = []
        >>> runs = clf.validation_runs(images, draws=2)
        >>> for table in runs.tables(2, WholeProgress(states.append, images=40, evaluations=800)):
        ...     pass
        >>> states[-1]
        Progress(finished=40, images=40, evaluations=800, at_most=800)
    """

    def __init__(self, report: OnProgress, *, images: int, evaluations: int) -> None:
        self._report, self._images, self._most = report, images, evaluations
        self._finished = self._evaluations = 0  # of earlier runs
        self._last = Progress(0, 0, 0, 0)

    def __call__(self, state: Progress) -> None:
        """Takes the progress of the run that is going on."""
        if state.begins_after(self._last):
            self._finished += self._last.finished
            self._evaluations += self._last.evaluations
        self._last = state
        spent = self._evaluations + state.evaluations
        self._report(Progress(self._finished + state.finished, self._images, spent, max(self._most, spent)))
