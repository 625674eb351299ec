"""enwik8: the first 100,000,000 bytes of a dump of the English Wikipedia, downloaded once and checked."""

import hashlib
import os
import urllib.error
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path

from traceformer.errors import NotFound, Unreadable

__all__ = ["ADDRESS", "SHA1", "SIZE", "fetch_enwik8"]

ADDRESS = "http://mattmahoney.net/dc/enwik8.zip"
ADDRESS_VARIABLE = "TRACEFORMER_ENWIK8"
"""The environment variable that names another address, such as that of a mirror."""
SIZE = 100_000_000
SHA1 = "57b8363b814821dc9d47aa4d41f58733519076b2"

_PIECE = 1 << 20
_SECONDS = 30.0


def fetch_enwik8(folder: Path, *, address: str | None = None, size: int = SIZE, sha1: str = SHA1) -> Path:
    """Returns the path of the unpacked file in `folder`, downloaded if it is not there yet.

    A download that broke off is continued where it ended. Nothing gets the file's name before its size and SHA-1
    are those published.

    Raises:
        NotFound: the address cannot be reached.
        Unreadable: the download broke off, or what came is not enwik8.
    """
    path = folder / "enwik8"
    if path.is_file() and path.stat().st_size == size:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    address = address or os.environ.get(ADDRESS_VARIABLE) or ADDRESS
    packed = folder / "enwik8.zip.part"
    _download(address, packed)
    try:
        _unpack(packed, path, size, sha1)
    except Unreadable:
        packed.unlink()
        raise
    packed.unlink()
    return path


def _download(address: str, packed: Path) -> None:
    have = packed.stat().st_size if packed.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            continued = answer.status == 206  # a server that knows no ranges sends everything again
            expected = int(answer.headers.get("Content-Length", -1))
            received = 0
            with packed.open("ab" if continued else "wb") as out:
                while piece := answer.read(_PIECE):
                    out.write(piece)
                    received += len(piece)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: it is all here
            return
        raise NotFound(f"enwik8 cannot be had from {address}", why=f"{error.code} {error.reason}") from error
    except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
        if packed.exists() and packed.stat().st_size > have:
            raise _broken(address) from error
        raise NotFound(
            f"enwik8 cannot be had from {address}",
            why=str(getattr(error, "reason", error)),
            hint=f'`data="pydoc"` needs no network; {ADDRESS_VARIABLE} names another address',
        ) from error
    if expected >= 0 and received < expected:
        raise _broken(address)


def _broken(address: str) -> Unreadable:
    return Unreadable(f"the download of {address} broke off", hint="the same command goes on where it ended")


def _unpack(packed: Path, path: Path, size: int, sha1: str) -> None:
    unpacked = path.with_suffix(".part")
    digest, written = hashlib.sha1(usedforsecurity=False), 0
    try:
        with zipfile.ZipFile(packed) as archive, archive.open("enwik8") as member, unpacked.open("wb") as out:
            while (piece := member.read(_PIECE)) and written <= size:
                digest.update(piece)
                written += out.write(piece)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        unpacked.unlink(missing_ok=True)
        raise Unreadable("what was downloaded is no archive of enwik8", why=str(error)) from error
    if (written, digest.hexdigest()) != (size, sha1):
        unpacked.unlink()
        raise Unreadable(
            "what was downloaded is not enwik8",
            why=f"{written} bytes with SHA-1 {digest.hexdigest()}, where {size} with {sha1} are published",
            hint="the same command downloads it again",
        )
    unpacked.replace(path)
