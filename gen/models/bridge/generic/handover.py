"""Two threads of which exactly one runs: a function that stops at points of its own until another gives it what comes next."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import torch


class Stopped(BaseException):
    """Ends the function inside the thread. No subclass of Exception, which functions may catch."""


@dataclass(frozen=True)
class StepRequest:
    """The function waits, and says this."""

    value: Any


@dataclass(frozen=True)
class Returned:
    """The function is done."""

    value: Any


@dataclass(frozen=True)
class Failed:
    """The function raised this."""

    error: BaseException


@dataclass(frozen=True)
class Desk:
    """The two sides' queues. The thread knows this and no more, so that nothing it holds keeps its `Handover` alive."""

    inward: SimpleQueue = field(default_factory=SimpleQueue)
    outward: SimpleQueue = field(default_factory=SimpleQueue)
    stopping: threading.Event = field(default_factory=threading.Event)
    owner: list[int] = field(default_factory=list)  # the thread inside

    def ask(self, value: Any) -> Any:
        """Inside the thread: hand a value over, and wait for what comes next. Stopped if nothing will."""
        self.check()
        self.outward.put(StepRequest(value))
        answer = self.inward.get()
        self.check()
        return answer

    def check(self) -> None:
        """Stopped where nobody waits for the function any more. RuntimeError in another thread, which would wait for itself."""
        if threading.get_ident() not in self.owner:
            raise RuntimeError("the pipeline is running already; it cannot be called before it is done")
        if self.stopping.is_set():
            raise Stopped

    def stop(self) -> None:
        self.stopping.set()
        self.inward.put(None)


class Handover:
    """`function(desk)` in a thread of its own, which runs only while `begin` or `resume` waits for it.

    The thread has what is a thread's own as its maker has it: gradients, inference mode, autocast, the default device, the CUDA
    device and stream, context variables. `close` ends it wherever it stands, at its next point of handing over; so does
    the garbage collector, and the end of the program.
    """

    def __init__(self, function: Callable[[Desk], Any], name: str):
        self._desk = Desk()
        self._thread = threading.Thread(target=_run, args=(function, self._desk, _thread_state()), name=name, daemon=True)
        self._finalizer = weakref.finalize(self, self._desk.stop)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def begin(self) -> Any:
        """Start the function: its first `StepRequest`, or what it returns (`Returned`). What it raises is raised."""
        self._thread.start()
        return self._wait()

    def resume(self, value: Any) -> Any:
        """Give the function what it waits for, and wait in turn."""
        self._desk.inward.put(value)
        return self._wait()

    def close(self) -> None:
        """End the function, and wait until its thread is gone."""
        self._finalizer()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _wait(self) -> Any:
        said = self._desk.outward.get()
        if isinstance(said, Failed):
            try:
                raise said.error
            finally:
                said = None  # no cycle through this frame, which would keep the function's tensors
        return said


def _run(function: Callable[[Desk], Any], desk: Desk, state: Callable[[], ExitStack]) -> None:
    desk.owner.append(threading.get_ident())
    try:
        with state():
            desk.outward.put(Returned(function(desk)))
    except Stopped:
        pass
    except BaseException as error:
        desk.outward.put(Failed(error))


def _thread_state() -> Callable[[], ExitStack]:
    """What gives another thread the caller's torch settings and context variables."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    variables = contextvars.copy_context()
    types = {"cpu", torch.get_default_device().type, *(["cuda"] if torch.cuda.is_initialized() else [])}
    autocast = [(kind, torch.get_autocast_dtype(kind)) for kind in types if kind != "meta" and torch.is_autocast_enabled(kind)]
    cached = torch.is_autocast_cache_enabled()
    default = torch.get_default_device()
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def enter() -> ExitStack:
        for variable, value in variables.items():
            variable.set(value)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(grad))
            for kind, dtype in autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=cached))
            if default.type != "cpu":
                stack.enter_context(default)
            if stream is not None:
                stack.enter_context(torch.cuda.device(stream.device))
                stack.enter_context(torch.cuda.stream(stream))
            return stack.pop_all()

    return enter
