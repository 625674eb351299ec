"""A bucket of the Hugging Face Hub: `hf://buckets/OWNER/NAME`, by what huggingface_hub offers for it.

It answers as any other bucket here, but has no writes on a condition: runs are copied there when they are finished,
and not written there. The token is the one that `hf auth login` left, or `HF_TOKEN`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import quote

from traceformer.errors import NotFound, Unreachable, Unsupported
from traceformer.store.objects.client import State

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["HubBucket", "open_hub_bucket"]

T = TypeVar("T")

_TRIES = 8
_TIMEOUT = 30.0
_REFUSED = (401, 403)
_TOTAL = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)")
_QUERY = re.compile(r"\?[^\s'\"]*")  # of an address: a signed one is as good as a password


def open_hub_bucket(name: str) -> "HubBucket":
    """Returns the bucket OWNER/NAME; nothing is asked of it yet.

    Raises:
        NotFound: huggingface_hub is not installed, or knows no buckets.
        Unreachable: the Hub does not answer.
    """
    from traceformer.network import hub_answers

    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        why, hint = "it is not installed", "pip install --upgrade huggingface_hub"
        raise NotFound("the Hub's buckets need huggingface_hub", why=why, hint=hint) from error
    api = HfApi()
    if not hasattr(api, "batch_bucket_files"):
        why, hint = "the installed version knows no buckets", "pip install --upgrade huggingface_hub"
        raise NotFound("the Hub's buckets need a newer huggingface_hub", why=why, hint=hint)
    if not hub_answers():
        raise Unreachable(f"hf://buckets/{name} cannot be reached", why=f"{api.endpoint} does not answer")
    return HubBucket(name, api)


class HubBucket:
    """The objects of one bucket of the Hub, by their keys; with the interface of an `ObjectStore`."""

    def __init__(self, bucket: str, api: "HfApi") -> None:
        self.name = f"hf://buckets/{bucket}"
        self._bucket, self._api = bucket, api

    def get(self, key: str) -> bytes:
        """Returns an object's bytes.

        Raises:
            NotFound: there is no such object.
            Unreachable: the Hub does not answer, or refuses.
        """
        return self._part(key, {})[0]

    def find(self, key: str) -> bytes | None:
        """Returns an object's bytes, or None if there is no such object."""
        try:
            return self.get(key)
        except NotFound:
            return None

    def get_range(self, key: str, start: int, length: int, *, seen: State | None = None) -> bytes:
        """Returns `length` bytes of an object from `start` on, in one request; the Hub asks for nothing that was seen.

        Raises:
            NotFound: there is no such object.
            Unreachable: the Hub does not answer, or refuses.
        """
        del seen
        if not length:
            return b""
        data, whole = self._part(key, {"Range": f"bytes={start}-{start + length - 1}"})
        return data if whole is not None else data[start : start + length]

    def get_end(self, key: str, length: int) -> tuple[bytes, State]:
        """Returns the last bytes of an object, at most `length`, and its state, in one request.

        Raises:
            NotFound: there is no such object.
            Unreachable: the Hub does not answer, or refuses.
        """
        data, whole = self._part(key, {"Range": f"bytes=-{length}"})
        return data[-length:], State(len(data) if whole is None else whole, None, None, 0.0)

    def head(self, key: str) -> State | None:
        """Returns an object's state; None if there is no such object."""
        found = self._asked(key, lambda: [*self._api.get_bucket_paths_info(self._bucket, [key])])
        return next((_state(each) for each in found if each.path == key), None)

    def listing(self, prefix: str) -> Iterator[tuple[str, State]]:
        """Yields the keys that begin with `prefix/`, in order, and their states."""
        yield from sorted((each.path, _state(each)) for each in self._tree(prefix, deep=True) if each.type == "file")

    def list_folder(self, prefix: str) -> tuple[list[str], dict[str, State]]:
        """Returns what lies directly under `prefix/`: prefixes of further keys, and the keys of objects."""
        found = self._tree(prefix, deep=False)
        folders = sorted(each.path for each in found if each.type != "file")
        return folders, {each.path: _state(each) for each in found if each.type == "file"}

    def put(self, key: str, data: bytes) -> None:
        """Writes an object, whole, in place of what may be there.

        Raises:
            Unreachable: the Hub does not answer, or refuses.
        """
        self.put_all([(key, data)])

    def put_all(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """Writes several objects, in one go."""
        added: Sequence[tuple[Any, str]] = [(data, key) for key, data in objects]
        self._asked(added[0][1], lambda: self._api.batch_bucket_files(self._bucket, add=[*added]))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Raises Unsupported: the Hub has no writes on a condition."""
        raise self._no_conditions()

    def replace(self, key: str, data: bytes, seen: State) -> bool:
        """Raises Unsupported: the Hub has no writes on a condition."""
        raise self._no_conditions()

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are not there are none."""
        if there := [key for key in keys if self.head(key) is not None]:
            self._asked(there[0], lambda: self._api.batch_bucket_files(self._bucket, delete=there))

    def _no_conditions(self) -> Unsupported:
        why = "it has no writes on a condition, which tell two writers apart"
        return Unsupported(
            f"a run cannot be written to {self.name}", why=why, hint="write it elsewhere; tf.sync copies it there"
        )

    def _tree(self, prefix: str, *, deep: bool) -> list[Any]:
        """What lies under a prefix, which the Hub takes for the beginning of a name."""
        start = f"{prefix}/" if prefix else ""
        try:
            found = self._asked(
                prefix, lambda: [*self._api.list_bucket_tree(self._bucket, prefix or None, recursive=deep or None)]
            )
        except NotFound as error:
            if "no bucket" in error.message:
                raise
            return []
        return [each for each in found if each.path.startswith(start)]

    def _part(self, key: str, headers: dict[str, str]) -> tuple[bytes, int | None]:
        """Returns an object's bytes, and the size of the whole object if these are a part of it."""
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        address = f"{self._api.endpoint}/buckets/{self._bucket}/resolve/{quote(key)}"

        def read() -> tuple[bytes, int | None]:
            # Packed on the way, a part would not be the bytes that were asked for.
            sent = {**build_hf_headers(token=self._api.token), "Accept-Encoding": "identity", **headers}
            answer = http_backoff("GET", address, headers=sent, timeout=_TIMEOUT, max_retries=_TRIES)
            if answer.status_code == 416:  # there is nothing to have a part of
                return b"", 0
            hf_raise_for_status(answer)
            whole = _TOTAL.match(answer.headers.get("Content-Range", ""))
            return answer.content, int(whole[1]) if whole else None

        return self._asked(key, read)

    def _asked(self, key: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as error:
            self._refuse(key, error)

    def _refuse(self, key: str, error: Exception) -> NoReturn:
        """Raises what an error of the Hub's client means; those that may pass it has tried again itself."""
        from huggingface_hub import errors

        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.BucketNotFoundError):
            raise NotFound(
                f"no bucket {self.name}", hint="make it first; a private one is seen with its token"
            ) from None
        if isinstance(error, errors.EntryNotFoundError) or status == 404:
            raise NotFound(f"no object {self.name}/{key}") from None
        why = _QUERY.sub("", str(error).strip().split("\n")[0])
        if status in _REFUSED or isinstance(error, errors.LocalTokenNotFoundError):
            hint = "hf auth login, or HF_TOKEN"
            raise Unreachable(f"{self.name}/{key} is refused", why=why, hint=hint) from None
        if isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
            raise Unreachable(f"{self.name}/{key} cannot be reached", why=why) from None
        raise error


def _state(found: Any) -> State:
    written = found.uploaded_at or found.mtime
    return State(found.size, found.xet_hash, None, 0.0 if written is None else written.timestamp())
