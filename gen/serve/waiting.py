"""The queue: pictures that wait, handed out among clients in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from gen.serve.jobs import ServeJob


@dataclass(frozen=True, eq=False)
class WaitingPicture:
    """A picture of a job, or all of them where they are one run."""

    job: ServeJob
    index: int = 0

    @property
    def pictures(self) -> int:
        return self.job.count if self.job.together else 1


class FairQueue:
    """First come, first served within a client; one of each client after another among them. Not safe for threads."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, deque[WaitingPicture]] = OrderedDict()  # the one whose turn it is first

    def __len__(self) -> int:
        return sum(len(own) for own in self._clients.values())

    def __iter__(self) -> Iterator[WaitingPicture]:
        """In the order in which they would be handed out if all could run."""
        rows = [list(own) for own in self._clients.values()]
        for turn in range(max(map(len, rows), default=0)):
            yield from (row[turn] for row in rows if turn < len(row))

    def add(self, one: WaitingPicture) -> None:
        self._clients.setdefault(one.job.client, deque()).append(one)

    def take(self, models: set[str]) -> WaitingPicture | None:
        """The next of one of these models: of the first client with such a one, whose turn is over by that."""
        for client, own in self._clients.items():
            for one in own:
                if one.job.model in models:
                    own.remove(one)
                    self._clients.move_to_end(client)
                    if not own:
                        del self._clients[client]
                    return one
        return None

    def remove(self, job: ServeJob) -> int:
        """Take all of a job out; how many there were."""
        removed = 0
        for client, own in list(self._clients.items()):
            kept = deque(one for one in own if one.job is not job)
            removed += len(own) - len(kept)
            if kept:
                self._clients[client] = kept
            else:
                del self._clients[client]
        return removed

    def jobs(self) -> list[ServeJob]:
        return list(dict.fromkeys(one.job for one in self))
