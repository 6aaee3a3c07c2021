"""One thread at a time where a model is changed or run: its hooks, packed weights and learned words are not a call's own."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

from torch import nn

Method = TypeVar("Method", bound=Callable[..., Any])
_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()  # type: ignore[type-arg]
_guard = threading.Lock()
_lent = threading.local()


def lock_of(network: nn.Module) -> Any:
    """The lock of everything that runs this network, `Generator`s that share it included; a thread may take it again."""
    if is_lent(network):
        return nullcontext()
    with _guard:
        return _locks.setdefault(network, threading.RLock())


def is_lent(network: nn.Module) -> bool:
    """Does this thread work for another one that holds the network's lock (`lent`)?"""
    return any(network is other for other in getattr(_lent, "networks", ()))


def exclusive(method: Method) -> Method:
    """A method of a `Generator` that other threads wait for. Open models among its keywords (a refiner) are waited for at once
    too: two that finish one another's pictures would otherwise each hold what the other waits for."""

    @functools.wraps(method)
    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        others = (getattr(value, "network", None) for value in kwargs.values())
        with all_of([self.network, *(other for other in others if isinstance(other, nn.Module))]):
            return method(self, *args, **kwargs)

    return alone  # type: ignore[return-value]


@contextmanager
def lent(network: nn.Module) -> Iterator[None]:
    """Inside, this thread works for another one that holds the network's lock, waits for this one, and so needs not be waited
    for."""
    before = getattr(_lent, "networks", ())
    _lent.networks = (*before, network)
    try:
        yield
    finally:
        _lent.networks = before


@contextmanager
def all_of(networks: Iterable[nn.Module]) -> Iterator[None]:
    """The locks of several networks, taken in one order by every thread."""
    with ExitStack() as held:
        for network in sorted(set(networks), key=id):
            held.enter_context(lock_of(network))
        yield
