"""The full run: every class at every draw (Li et al., arXiv 2303.16203, algorithm 1), the reference for all rules."""

from dataclasses import dataclass

from fastdc.rules.protocol import AbstractRule, Look, check_draws
from fastdc.support import Mask


@dataclass(frozen=True)
class Full(AbstractRule):
    """Keeps every class to the last draw."""

    name = "full"

    def looks(self, draws: int) -> tuple[int, ...]:
        """Looks once, after the last draw."""
        check_draws(self.name, draws)
        return (draws,)

    def keep(self, look: Look) -> Mask:
        """Keeps every class."""
        return look.alive
