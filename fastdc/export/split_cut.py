"""Chooses the part of a graph to compute beforehand, by a minimum cut.

Some nodes of a graph can run ahead of the others, once instead of once per cell. Running node n ahead saves work w(n)
per cell. Each value v that a node left behind still needs then costs p(v) per cell to fetch. A set A of nodes that
holds the producers of everything its nodes read is worth

    sum of w(n) over n in A  -  sum of p(v) over the values v made in A and read outside

and the best set is a minimum cut (a closure problem with shared prices: Picard, Management Science 22(11), 1976). The
source stands for "ahead", the sink for "left behind":

    source -> n        w(n)       cut when n stays behind
    n -> v             p(v)       cut when n is ahead and v is fetched
    v -> reader        infinite   a reader that stays behind fetches v
    reader -> n        infinite   a reader that is ahead needs n ahead

The maximum flow is found by Dinic's algorithm (1970). Of several best sets the smallest is taken, the nodes that the
source still reaches, so that work is moved only if that saves something.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_INFINITE = 1 << 62


@dataclass(frozen=True)
class Candidate:
    """A node that may run ahead.

    Attributes:
        work: Operations per cell that running it ahead saves, at least 0.
        reads: The values it reads, if they are made by candidates or are sources; others do not matter.
        makes: The values it makes.
    """

    work: int
    reads: tuple[str, ...]
    makes: tuple[str, ...]


def best_ahead(
    candidates: Sequence[Candidate],
    prices: Mapping[str, int | None],
    *,
    sources: Sequence[str] = (),
    needed: Sequence[str] = (),
) -> list[int]:
    """The most valuable set of nodes to run ahead.

    Args:
        candidates: The nodes.
        prices: Operations per cell that fetching a value costs, at least 0; None or absent: it cannot be fetched.
        sources: Values that are available ahead without any node; a node left behind pays their price to read them.
        needed: Values that are read by nodes that cannot run ahead.

    Returns:
        Indices of candidates, ascending: the smallest set of the highest worth.
    """
    network = _Network()
    source, sink = network.add(), network.add()
    nodes = [network.add() for _ in candidates]
    producer = dict.fromkeys(sources, source)
    for node, candidate in zip(nodes, candidates, strict=True):
        network.connect(source, node, candidate.work)
        producer.update(dict.fromkeys(candidate.makes, node))
    fetched = {}
    for name, node in producer.items():
        price = prices.get(name)
        fetched[name] = network.add()
        network.connect(node, fetched[name], _INFINITE if price is None else price)
    for node, candidate in zip(nodes, candidates, strict=True):
        for name in dict.fromkeys(candidate.reads):
            network.connect(fetched[name], node, _INFINITE)
            if producer[name] != source:
                network.connect(node, producer[name], _INFINITE)
    for name in dict.fromkeys(needed):
        network.connect(fetched[name], sink, _INFINITE)
    reached = network.cut(source, sink)
    return [index for index, node in enumerate(nodes) if reached[node] >= 0]


@dataclass
class _Network:
    """A flow network; edge e and its reverse are e and e ^ 1."""

    edges: list[list[int]] = field(default_factory=list)  # of each vertex, the edges that leave it
    head: list[int] = field(default_factory=list)
    room: list[int] = field(default_factory=list)

    def add(self) -> int:
        self.edges.append([])
        return len(self.edges) - 1

    def connect(self, tail: int, head: int, capacity: int) -> None:
        if capacity > 0:
            self.edges[tail].append(len(self.head))
            self.edges[head].append(len(self.head) + 1)
            self.head += [head, tail]
            self.room += [capacity, 0]

    def cut(self, source: int, sink: int) -> list[int]:
        """Fills the network; returns the distance of each vertex from the source, -1 on the sink's side."""
        while True:
            distance = self._distances(source)
            if distance[sink] < 0:
                return distance
            following = [0] * len(self.edges)  # of each vertex, the first edge that may still lead to the sink
            while self._augment(source, sink, distance, following):
                pass

    def _distances(self, source: int) -> list[int]:
        distance = [-1] * len(self.edges)
        distance[source] = 0
        queue = deque([source])
        while queue:
            vertex = queue.popleft()
            for edge in self.edges[vertex]:
                if self.room[edge] > 0 and distance[self.head[edge]] < 0:
                    distance[self.head[edge]] = distance[vertex] + 1
                    queue.append(self.head[edge])
        return distance

    def _augment(self, source: int, sink: int, distance: list[int], following: list[int]) -> bool:
        """Sends flow along one shortest path; returns False if no path is left."""
        path: list[int] = []
        vertex = source
        while vertex != sink:
            if following[vertex] == len(self.edges[vertex]):
                if not path:
                    return False
                vertex = self.head[path.pop() ^ 1]
                following[vertex] += 1
                continue
            edge = self.edges[vertex][following[vertex]]
            if self.room[edge] > 0 and distance[self.head[edge]] == distance[vertex] + 1:
                path.append(edge)
                vertex = self.head[edge]
            else:
                following[vertex] += 1
        flow = min(self.room[edge] for edge in path)
        for edge in path:
            self.room[edge] -= flow
            self.room[edge ^ 1] += flow
        return True
