"""The full run: every class at every draw (Li et al., arXiv 2303.16203, algorithm 1). All others are compared to it."""

from dataclasses import dataclass

from fastdc.rules.protocol import AbstractRule, Look, Mask, check_draws


@dataclass(frozen=True)
class Full(AbstractRule):
    """Keeps every class to the last draw."""

    name = "full"

    def looks(self, draws: int) -> tuple[int, ...]:
        """See :class:`AbstractRule`."""
        check_draws(self.name, draws)
        return (draws,)

    def keep(self, look: Look) -> Mask:
        """See :class:`AbstractRule`."""
        return look.alive
