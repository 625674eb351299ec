"""Work that takes longer than a page should wait: a thread does it once, and pages ask how far it is."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Generic, TypeVar

from traceformer.progress import OnStep

__all__ = ["LongWork"]

Value = TypeVar("Value")


@dataclass(slots=True)
class LongWork(Generic[Value]):
    """Something that `make` makes, which is told whom to tell how far it is.

    Attributes:
        done: How many steps are done, of `of`.
    """

    make: Callable[[OnStep], Value]
    done: int = 0
    of: int = 0
    _future: "Future[Value] | None" = None
    _lock: Any = field(default_factory=Lock)

    def within(self, seconds: float) -> Value | None:
        """Returns what was made, or None if it is not there in time. What failed is begun anew when asked for again.

        Raises:
            TraceformerError: as `make` raises it.
        """
        with self._lock:
            if self._future is None:
                threads = ThreadPoolExecutor(1, "traceformer-viewer")
                self._future = threads.submit(self.make, self._step)
                threads.shutdown(wait=False)
            future = self._future
        try:
            return future.result(seconds)
        except TimeoutError:
            return None
        finally:
            if future.done() and future.exception() is not None:
                with self._lock:
                    self._future = None

    def pending(self) -> dict[str, dict[str, int]]:
        """Returns what a page is told meanwhile."""
        return {"pending": {"done": self.done, "of": self.of}}

    def _step(self, done: int, of: int) -> None:
        self.done, self.of = done, of
