"""Sources of requests for a scheduler in tests; in the program the runner is one."""

from collections import deque
from collections.abc import Iterable

from fastdc.engine import Request


class Source:
    """Gives the requests of an iterable, read only when asked, and those added later."""

    def __init__(self, requests: Iterable[Request] = ()) -> None:
        self._requests = iter(requests)
        self._added: deque[Request] = deque()

    def add(self, request: Request) -> None:
        self._added.append(request)

    def __call__(self) -> Request | None:
        return self._added.popleft() if self._added else next(self._requests, None)
