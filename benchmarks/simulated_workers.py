"""A simulation of workers that see only which chunks are committed."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from consumers.workers.share import Share
from consumers.workers.walk import Walk

# Time between two looks at the store, in seconds.
LOOK_S = 0.05
# The part of a chunk that is left when the producers ask for the next one.
AHEAD = 0.15


@dataclass
class Simulation:
    """Workers that take ``chunk_s`` seconds for a chunk, some of which die.

    Attributes:
        chunk_s: the time that each worker takes for a chunk, in seconds.
        chunks: number of chunks of the store.
        dies_s: when workers die, by number.
        seed: of the small differences between chunks.
        now: the time.
        end_s: when the last chunk was committed.
        built: how often each chunk was built, including those under way at the end.
    """

    chunk_s: Sequence[float]
    chunks: int
    dies_s: dict[int, float] = field(default_factory=dict)
    seed: int = 0
    now: float = 0.0
    end_s: float = 0.0
    built: Counter[int] = field(default_factory=Counter)

    def run(self) -> Simulation:
        """Builds every chunk; returns this simulation."""
        chance, count = random.Random(self.seed), len(self.chunk_s)
        committed: set[int] = set()
        walks = [
            Walk(Share(k, count), self.chunks, lambda: committed, lambda: self.now)
            for k in range(count)
        ]
        events: list[tuple[float, float, str, int, int]] = []
        claimed: dict[int, int | None] = {}

        def begin(worker: int, chunk: int) -> None:
            took = self.chunk_s[worker] * chance.uniform(0.97, 1.03)
            self.built[chunk] += 1
            for at, event in ((took * (1 - AHEAD), "claim"), (took, "commit")):
                heapq.heappush(events, (self.now + at, chance.random(), event, worker, chunk))

        for worker, walk in enumerate(walks):
            first = walk.claim(0.0)
            assert first is not None
            begin(worker, first)
        while len(committed) < self.chunks:
            self.now, _, event, worker, chunk = heapq.heappop(events)
            if self.now >= self.dies_s.get(worker, float("inf")):
                continue
            took = self.chunk_s[worker]
            if event == "claim":
                claimed[worker] = walks[worker].claim(took)
                continue
            if event == "commit":
                committed.add(chunk)
                found = claimed.pop(worker)
            else:
                found = walks[worker].claim(took)
                found = walks[worker].overdue(took) if found is None else found
            if found is None:
                later = self.now + LOOK_S
                heapq.heappush(events, (later, chance.random(), "look", worker, -1))
            else:
                begin(worker, found)
        assert all(walk.is_complete() for walk in walks)
        self.end_s = self.now
        return self

    @property
    def duplicates(self) -> float:
        """Chunks that were built more than once, as a share of all."""
        return (self.built.total() - self.chunks) / self.chunks
