"""What was worked out once and may be asked for again: kept while there is room, made by one thread at a time."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, wait
from dataclasses import fields, is_dataclass
from threading import Lock, Semaphore, Thread
from typing import Any, NamedTuple, cast

from traceformer.progress import OnStep

__all__ = ["Kept", "Pending"]

_AT_ONCE = 2  # works of many steps, which have all cores for themselves
_OF_ANYTHING = 256  # bytes that a value takes beside what is counted


class Pending(NamedTuple):
    """How far work is that is not done."""

    done: int
    of: int

    def to_json(self) -> dict[str, Any]:
        """Returns what a page reads as: ask again."""
        return {"pending": self._asdict()}


class _Work(NamedTuple):
    """A value that is being made, and the last that it told, which is alone in its list."""

    value: "Future[Any]"
    at: list[Pending]


class Kept:
    """Values by key. Beyond a number or a size those that were asked for least lately are forgotten.

    A value that is asked for by several threads is made once, while the others wait.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes, self._bytes = most, most_bytes, 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._making: dict[Hashable, Lock] = {}
        self._work: dict[Hashable, _Work] = {}
        self._turns = Semaphore(_AT_ONCE)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns the value of a key, made now if it is not there."""
        with self._lock:
            if key in self._values:
                return self._known(key)
            making = self._making.setdefault(key, Lock())
        with making:
            with self._lock:
                if key in self._values:
                    return self._known(key)
            try:
                value = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            self._keep(key, value)
            return value

    def later(self, key: Hashable, make: Callable[[OnStep], Any], patience: float = 0.2) -> Any | Pending:
        """Returns the value of a key, or how far it is: it is made by a thread of its own.

        Args:
            key: The key.
            make: Makes the value, and tells what it is given how many of how many steps are done.
            patience: How many seconds to wait for it now, so that quick work is answered at once.

        Raises:
            Exception: what `make` raised; asked again it is made anew.
        """
        with self._lock:
            if key in self._values:
                return self._known(key)
            work = self._work.get(key)
            if work is None:
                work = self._work[key] = _Work(Future(), [Pending(0, 0)])
                Thread(target=self._work_on, args=(work, make), name="traceformer-view-work", daemon=True).start()
        wait([work.value], patience)
        if not work.value.done():
            return work.at[-1]
        with self._lock:
            self._work.pop(key, None)
        value = work.value.result()
        self._keep(key, value)
        return value

    def _work_on(self, work: "_Work", make: Callable[[OnStep], Any]) -> None:
        def tell(done: int, of: int) -> None:
            work.at[:] = [Pending(done, of)]

        with self._turns:
            try:
                work.value.set_result(make(tell))
            except Exception as error:  # for whoever asks
                work.value.set_exception(error)

    def _known(self, key: Hashable) -> Any:
        self._values.move_to_end(key)
        return self._values[key][0]

    def _keep(self, key: Hashable, value: Any) -> None:
        size = bytes_of(value)
        with self._lock:
            if key in self._values:
                self._bytes -= self._values.pop(key)[1]
            self._values[key] = value, size
            self._bytes += size
            while len(self._values) > 1 and (len(self._values) > self._most or self._bytes > self._most_bytes):
                self._bytes -= self._values.popitem(last=False)[1][1]


def bytes_of(value: Any) -> int:
    """Returns about how many bytes a value takes: arrays, texts and bytes, and those in containers and dataclasses."""
    if isinstance(value, bytes | bytearray | str):
        return _OF_ANYTHING + len(value)
    if isinstance(size := getattr(value, "nbytes", None), int):
        return _OF_ANYTHING + size
    if isinstance(value, Mapping):
        inside = [*cast(Mapping[Any, Any], value).values()]
    elif isinstance(value, list | tuple):
        inside = [*cast(list[Any], value)]
    elif is_dataclass(value):
        inside = [getattr(value, each.name, None) for each in fields(value)]
    else:
        inside = []
    return _OF_ANYTHING + sum(map(bytes_of, inside))
