"""Names of files that come from data: of examples, prompts, models and texts. No other place makes or judges one.

`file_name` keeps names apart, `readable_name` keeps them readable. Both give letters, digits, dots, dashes and
underscores, and no more of them than leaves room for what is put before and after.
"""

import hashlib
import re

__all__ = ["MOST", "file_name", "is_plain", "readable_name"]

_OTHERS = re.compile(r"[^A-Za-z0-9._-]+")
_DIGITS = 16
_DIGEST = re.compile(rf".*-[0-9a-f]{{{_DIGITS}}}")
# What Windows keeps for itself, whatever ending follows.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
MOST = 160
"""Characters of a name: of the 255 that a file system allows, what leaves room for its time, ending and such."""


def is_plain(name: str) -> bool:
    """Returns whether a name can stand in a file's as it is: up to 160 letters, digits, dots, dashes, underscores."""
    return bool(name.strip(".")) and len(name) <= MOST and not _OTHERS.search(name)


def file_name(name: str) -> str:
    """Returns the name if a file may have it on any system, or else what a file may have of it and a digest.

        file_name("prompt-1")    # prompt-1
        file_name("../up")       # up-98d68bbcc8f8ab90

    Different names never become the same: what ends like a digest gets one of its own.
    """
    plain = _OTHERS.sub("-", name).strip("-.")
    if is_plain(plain) and plain == name and not _DIGEST.fullmatch(name) and not _DEVICES.fullmatch(name):
        return name
    if _DEVICES.fullmatch(plain):  # whatever follows the dot
        plain = plain.replace(".", "-")
    # Half a surrogate pair cannot be encoded, and is a name all the same.
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_DIGITS]
    return f"{plain[: MOST - _DIGITS - 1].rstrip('-.') or 'name'}-{digest}"


def readable_name(name: str, *, otherwise: str) -> str:
    """Returns what a file may have of a name, for a folder that is told apart by its time; `otherwise` if nothing is.

    readable_name("meta-llama/Llama-3.2-1B", otherwise="model")    # meta-llama-Llama-3.2-1B
    """
    return _OTHERS.sub("-", name).strip("-.")[: MOST // 2].rstrip("-.") or otherwise
