"""One bucket: objects read, written, written only if absent, or only in place of what was seen.

1. Each request is tried again, with growing pauses, while the bucket answers that it cannot just now (500, 503, 429)
   or the connection breaks or is too slow; for five minutes, and then it is an error that says so.
2. A write that only happens if the object is absent, or still what was seen, may have happened though its answer was
   lost. Tried again it is refused, by what it wrote itself: so after a lost answer the object that is there is read,
   and it is ours if its bytes are. Who must tell equal writers apart puts a name of its own into the bytes.
"""

import itertools
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from traceformer.errors import NotFound, Unreachable, Unsupported
from traceformer.store.forks import use_bucket_client

if TYPE_CHECKING:
    from obstore.store import ObjectStore as AnyStore

__all__ = ["ObjectStore", "State", "Stores"]

T = TypeVar("T")

_PATIENCE = 300.0  # seconds that a request is tried again
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_QUICK_BYTES = 4 << 20  # what is sent within the time of a quick answer
_MOST_AT_ONCE = 4 << 30  # of 5 GiB that one request can send
_STATUS = re.compile(r"status code: (\d{3})|\b(\d{3}) [A-Z][a-z]+(?: [A-Z][a-z]+)*:? ")
_SAID = re.compile(r"<(?:Code|Message)>([^<]*)<")  # of an answer in XML, which may go on with keys
_QUERY = re.compile(r"\?[^\s'\")]*")  # of an address: a signed one is as good as a password
_AGAIN = {408, 409, 425, 429}  # and all from 500 on
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal", "metadata/computeMetadata")


@dataclass(frozen=True, slots=True)
class State:
    """An object without its bytes.

    Attributes:
        size: Its bytes.
        etag: What the store calls this content.
        version: What the store calls this writing, where it has a name for that.
        modified: Seconds since 1970 when it was written.
    """

    size: int
    etag: str | None
    version: str | None
    modified: float


@dataclass(frozen=True, slots=True)
class Stores:
    """Clients of one bucket, which differ in how long they wait.

    Attributes:
        quick: Gives up a request that takes over half a minute.
        reading: Gives up one that sends nothing for half a minute.
        sending: Gives up one that takes over a quarter of an hour.
    """

    quick: "AnyStore"
    reading: "AnyStore"
    sending: "AnyStore"


class ObjectStore:
    """The objects of one bucket, by their keys. Threads may share it.

    Attributes:
        name: The bucket's address, such as `s3://bucket`.
    """

    def __init__(self, name: str, stores: Stores) -> None:
        self.name = name
        self._stores = stores

    def get(self, key: str) -> bytes:
        """Returns an object's bytes.

        Raises:
            NotFound: there is no such object.
            Unreachable: the bucket does not answer, or refuses.
        """
        import obstore

        return self._tried(key, lambda: bytes(obstore.get(self._stores.reading, key).bytes()))

    def find(self, key: str) -> bytes | None:
        """Returns an object's bytes, or None if there is no such object."""
        try:
            return self.get(key)
        except NotFound:
            return None

    def get_with_state(self, key: str) -> tuple[bytes, State] | None:
        """Returns an object's bytes and their state, which belong together; None if there is no such object."""
        import obstore

        def read() -> tuple[bytes, State]:
            found = obstore.get(self._stores.reading, key)
            return bytes(found.bytes()), _state(found.meta)

        try:
            return self._tried(key, read)
        except NotFound:
            return None

    def get_range(self, key: str, start: int, length: int, *, seen: State | None = None) -> bytes:
        """Returns `length` bytes of an object from `start` on, in one request: of the one that was `seen`, if it was.

        Raises:
            NotFound: there is no such object, or it is another one now.
            Unreachable: the bucket does not answer, or refuses.
        """
        import obstore
        from obstore.exceptions import PreconditionError

        if not length:
            return b""
        options: Any = {"range": (start, start + length)}
        if seen is not None and seen.etag is not None:
            options["if_match"] = seen.etag

        def read() -> bytes:
            try:
                return bytes(obstore.get(self._stores.reading, key, options=options).bytes())
            except PreconditionError:
                raise NotFound(f"{self.name}/{key} was replaced meanwhile") from None

        return self._tried(key, read)

    def get_end(self, key: str, length: int) -> tuple[bytes, State]:
        """Returns the last bytes of an object, at most `length`, and its state, in one request.

        Raises:
            NotFound: there is no such object.
            Unreachable: the bucket does not answer, or refuses.
        """
        import obstore

        def read() -> tuple[bytes, State]:
            found = obstore.get(self._stores.reading, key, options={"range": {"suffix": length}})
            return bytes(found.bytes()), _state(found.meta)

        return self._tried(key, read)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Returns several parts (start, length) of an object, at once; those that are near each other in one request.

        Raises:
            NotFound: there is no such object.
            Unreachable: the bucket does not answer, or refuses.
        """
        import obstore

        filled = [(start, length) for start, length in ranges if length]
        if not filled:
            return [b""] * len(ranges)
        starts, lengths = [start for start, _ in filled], [length for _, length in filled]

        def read() -> list[bytes]:
            return [
                bytes(part) for part in obstore.get_ranges(self._stores.reading, key, starts=starts, lengths=lengths)
            ]

        parts = iter(self._tried(key, read))
        return [next(parts) if length else b"" for _, length in ranges]

    def head(self, key: str) -> State | None:
        """Returns an object's size and etag; None if there is no such object."""
        import obstore

        try:
            return self._tried(key, lambda: _state(obstore.head(self._stores.quick, key)))
        except NotFound:
            return None

    def listing(self, prefix: str) -> Iterator[tuple[str, State]]:
        """Yields the keys that begin with `prefix/`, in order, and their states."""
        import obstore

        def read() -> list[tuple[str, State]]:
            pages = obstore.list(self._stores.quick, prefix or None, chunk_size=1000)
            return [(each["path"], _state(each)) for page in pages for each in page]

        yield from sorted(self._tried(prefix, read))

    def list_folder(self, prefix: str) -> "tuple[list[str], dict[str, State]]":
        """Returns what lies directly under `prefix/`: prefixes of further keys, and the keys of objects."""
        import obstore

        def read() -> "tuple[list[str], dict[str, State]]":
            found = obstore.list_with_delimiter(self._stores.quick, prefix or None)
            return sorted(found["common_prefixes"]), {each["path"]: _state(each) for each in found["objects"]}

        return self._tried(prefix, read)

    def put(self, key: str, data: bytes) -> None:
        """Writes an object, whole, in place of what may be there.

        Raises:
            Unreachable: the bucket does not answer, or refuses.
        """
        import obstore

        parted = len(data) > _MOST_AT_ONCE
        self._tried(key, lambda: obstore.put(self._to_send(data), key, data, use_multipart=parted))

    def put_all(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """Writes several objects, at once."""
        from traceformer.store.objects.at_once import at_once

        for _ in at_once(lambda each: self.put(*each), objects):
            pass

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes an object if there is none, and returns whether it did: of all who try, one is told so.

        After an answer that was lost it is taken for written by us if it has our bytes.

        Raises:
            Unreachable: the bucket does not answer, or refuses.
            Unsupported: it has no such writes.
        """
        return self._put_on_condition(key, data, "create")

    def replace(self, key: str, data: bytes, seen: State) -> bool:
        """Writes an object if the one that is there is still as it was seen, and returns whether it did.

        Raises:
            Unreachable: the bucket does not answer, or refuses.
            Unsupported: it has no such writes.
        """
        condition = {"e_tag": seen.etag, "version": seen.version}
        return self._put_on_condition(key, data, {name: of for name, of in condition.items() if of is not None})

    def _put_on_condition(self, key: str, data: bytes, mode: Any) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        answer_lost = False
        for pause in self._pauses(key):
            try:
                obstore.put(self._to_send(data), key, data, mode=mode, use_multipart=False)
                return True
            except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
                if isinstance(error, FileNotFoundError) and "NoSuchBucket" in str(error):
                    raise self._no_bucket() from error
                if mode == "create" and self.head(key) is None:
                    pause(error)  # somebody else is writing it just now, or has removed it since
                    continue
                return answer_lost and self.find(key) == data
            except Exception as error:
                self._raise_if_final(key, error)
                answer_lost = True
                pause(error)
        raise AssertionError("pauses end with an error")

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are not there are none."""
        import obstore

        for several in _in_groups([*keys], 1000):
            try:
                self._tried(several[0], lambda several=several: obstore.delete(self._stores.quick, several))
            except NotFound:
                for key in several:  # some stores stop at the first that is not there
                    with suppress(NotFound):
                        self._tried(key, lambda key=key: obstore.delete(self._stores.quick, key))

    def _to_send(self, data: bytes) -> "AnyStore":
        return self._stores.quick if len(data) <= _QUICK_BYTES else self._stores.sending

    def _tried(self, key: str, call: Callable[[], T]) -> T:
        """Returns what a request that can be made twice gives, tried again while the bucket cannot answer."""
        for pause in self._pauses(key):
            try:
                return call()
            except NotFound:
                raise
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise self._no_bucket() from error
                raise NotFound(f"no object {self.name}/{key}") from None
            except Exception as error:
                self._raise_if_final(key, error)
                pause(error)
        raise AssertionError("pauses end with an error")

    def _pauses(self, key: str) -> Iterator[Callable[[Exception], None]]:
        """Yields, before each try, what waits after one that failed; it raises once patience has run out.

        Raises:
            Unsupported: this process was forked from one that had asked a bucket.
        """
        use_bucket_client()
        began, length = time.monotonic(), _FIRST_PAUSE

        def pause(error: Exception) -> None:
            if time.monotonic() - began > _PATIENCE:
                raise Unreachable(
                    f"{self.name}/{key} cannot be reached",
                    why=f"tried again for {_PATIENCE:.0f} seconds: {_told(error)}",
                    hint="look at the network and the endpoint, then the same again",
                ) from error
            time.sleep(length * random.uniform(0.5, 1.5))

        for _ in itertools.count():
            yield pause
            length = min(2 * length, _LONGEST_PAUSE)

    def _raise_if_final(self, key: str, error: Exception) -> None:
        """Raises what trying again would not change; returns if it may."""
        from obstore import exceptions

        if not isinstance(error, exceptions.BaseError | OSError):
            raise error
        text = str(error)
        if any(address in text for address in _NO_CREDENTIALS):
            raise Unreachable(
                f"no credentials for {self.name}",
                why="neither the environment nor this machine has any",
                hint="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile; AWS_SKIP_SIGNATURE=true if public",
            ) from error
        if "NoSuchBucket" in text:
            raise self._no_bucket() from error
        status = status_of(text)
        if isinstance(error, exceptions.NotSupportedError) or status == 501:
            raise Unsupported(f"{self.name} has no writes on a condition", why=_told(error)) from error
        refused = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
        if refused or (status is not None and 400 <= status < 500 and status not in _AGAIN):
            raise Unreachable(
                f"{self.name}/{key} is refused", why=_told(error), hint="look at the credentials"
            ) from error

    def _no_bucket(self) -> NotFound:
        return NotFound(f"no bucket {self.name}", hint="make it first, or look at the endpoint")


def status_of(text: str) -> int | None:
    """Returns the number of HTTP that an error's text tells, if it does."""
    found = _STATUS.search(text)
    return int(found[1] or found[2]) if found else None


def _told(error: Exception) -> str:
    """Returns the first line of an error, without what a server or a signed address tells of an account."""
    text = str(error).strip().split("\n")[0]
    said = _SAID.findall(str(error))
    text = f"{text.partition('<')[0].rstrip(': ')}: {': '.join(said)}" if said else text.partition("<")[0]
    text = _QUERY.sub("", text)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _state(told: Any) -> State:
    return State(told["size"], told.get("e_tag"), told.get("version"), told["last_modified"].timestamp())


def _in_groups(keys: Sequence[str], most: int) -> Iterator[list[str]]:
    for start in range(0, len(keys), most):
        yield [*keys[start : start + most]]
