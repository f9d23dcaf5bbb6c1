"""What certifying one image says: a class, a radius, and what they rest on and cost.

The certificate of randomized smoothing (Cohen, Rosenfeld & Kolter, arXiv 1902.02918, theorem 1): the smoothed
classifier answers `label` for every image within the L2 distance `radius`, with probability at least 1 - alpha over the
noise of the run.
"""

from dataclasses import dataclass

ABSTAIN = -1


@dataclass(frozen=True)
class Certificate:
    """One image.

    Attributes:
        label: The class, or :data:`ABSTAIN`.
        radius: L2 distance in pixels in [0, 1]; 0 when abstaining.
        p_lower: Lower confidence bound on the probability that the base classifier answers `label` under noise, in
            [0, 1); 0 where there is none.
        successes: Estimation copies that were given the class selected.
        copies: Estimation copies counted.
        selection_copies: Copies that the class was selected with.
        evaluations: Network evaluations, all of them (NFE).
        seconds: Wall time since the image before it was finished.
    """

    label: int
    radius: float
    p_lower: float
    successes: int
    copies: int
    selection_copies: int
    evaluations: int
    seconds: float

    @property
    def abstained(self) -> bool:
        """Whether no class could be named."""
        return self.label == ABSTAIN
