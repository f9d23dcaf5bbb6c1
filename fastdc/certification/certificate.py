"""Certificate of one image: a class, a radius, the counts behind them, and the cost.

This is the certificate of randomized smoothing (Cohen, Rosenfeld & Kolter, arXiv 1902.02918, theorem 1): the smoothed
classifier answers `label` for every image within the L2 distance `radius`, with probability at least 1 - alpha over the
noise of the copies.
"""

from dataclasses import dataclass, field

ABSTAIN = -1
"""The label of an image for which no class can be named."""


@dataclass(frozen=True)
class Certificate:
    """Certificate of one image.

    Attributes:
        label: The class, or :data:`ABSTAIN`.
        radius: Certified L2 distance in pixels in [0, 1]; 0 for an abstention.
        p_lower: Lower confidence bound on the probability that the base classifier answers `label` under noise, in
            [0, 1); 0 if there is none.
        successes: Number of estimation copies that were given the selected class.
        copies: Number of estimation copies counted.
        selection_copies: Number of copies that selected the class.
        evaluations: Number of network evaluations, selection included (NFE).
        seconds: Wall time since the image before this one was finished.
        index: Index of the image among the images given. This and the next two are known in :class:`Certificates`, and
            None elsewhere; they do not count when certificates are compared.
        name: Name of the class; None for an abstention.
        image: Name of the image, such as the path of its file; None for an image in memory.
    """

    label: int
    radius: float
    p_lower: float
    successes: int
    copies: int
    selection_copies: int
    evaluations: int
    seconds: float
    index: int | None = field(default=None, kw_only=True, compare=False)
    name: str | None = field(default=None, kw_only=True, compare=False)
    image: str | None = field(default=None, kw_only=True, compare=False)

    @property
    def abstained(self) -> bool:
        """Whether no class could be named."""
        return self.label == ABSTAIN
