"""How a C compiler makes the library: once for each kind of processor, and joined.

    python -m traceformer.core.building    # makes the one of this folder anew

Nothing but Python's own library is needed, since the build of the package runs this before anything is installed. One
library serves all Pythons: it knows nothing of Python.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["INTERFACE", "LIBRARY", "build", "is_current"]

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "libcore.so"
INTERFACE = 3  # of the functions: rises with every change of what one takes

_FLAGS = (
    *("-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off"),
    f"-DTF_INTERFACE={INTERFACE}",
)
_X86 = {
    "avx512": "-DTF_AVX512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -msse4.2",
    "avx2": "-DTF_AVX2 -mavx2 -mfma -mf16c -msse4.2",
    "plain": "",
}
_ARM = {"neon": "-DTF_NEON -march=armv8-a+crc", "plain": ""}
_VARIANTS: Mapping[str, Mapping[str, str]] = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}
_COMPILERS = ("cc", "gcc", "clang")


def is_current(library: Path = LIBRARY) -> bool:
    """Returns whether a library is there, and was made of these sources in this way on such a machine."""
    return library.is_file() and _digest().encode() in library.read_bytes()


def build(library: Path = LIBRARY) -> str | None:
    """Makes the library, unless it is current; returns why it could not be made, None if it is there.

    `CC` names the compiler. What cannot be made anew is removed: an old library may say wrong things.
    """
    if is_current(library):
        return None
    library.unlink(missing_ok=True)
    if sys.byteorder != "little":
        return "this machine's numbers are big-endian"
    compiler = _compiler()
    if compiler is None:
        return f"no C compiler: {os.environ.get('CC') or ', '.join(_COMPILERS)}"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / library.name
        try:
            _compile(compiler, made)
            shutil.copyfile(made, library)
        except (OSError, subprocess.CalledProcessError) as error:
            words = getattr(error, "stderr", "") or str(error)
            return f"{compiler[0]} failed: {(words.strip().splitlines() or ['without a word'])[0]}"
    return None


def _compiler() -> list[str] | None:
    asked = shlex.split(os.environ.get("CC", ""))
    if asked:
        return asked if shutil.which(asked[0]) else None
    return next(([name] for name in _COMPILERS if shutil.which(name)), None)


def _compile(compiler: list[str], library: Path) -> None:
    """Compiles in the folder of the sources, and tells no paths: equal sources give equal bytes."""
    objects: list[str] = []
    source = FOLDER / "source"

    def run(*arguments: str) -> None:
        subprocess.run([*compiler, *arguments], cwd=source, check=True, capture_output=True, text=True)

    for variant, flags in _variants().items():
        objects.append(str(library.with_name(f"{variant}.o")))
        run(*_FLAGS, f"-DTF_VARIANT={variant}", *flags.split(), "-c", "variant.c", "-o", objects[-1])
    objects.append(str(library.with_name("core.o")))
    run(*_FLAGS, f'-DTF_SOURCE="{_digest()}"', "-c", "core.c", "-o", objects[-1])
    stripped = () if sys.platform == "darwin" else ("-s",)
    run("-shared", *stripped, *objects, "-o", str(library), "-lm")


def _variants() -> Mapping[str, str]:
    return _VARIANTS.get(platform.machine().lower(), {"plain": ""})


def _digest() -> str:
    """Returns the SHA-256 of the sources, and of how they are compiled for this kind of machine."""
    digest = hashlib.sha256(repr((_FLAGS, sorted(_variants().items()), sys.platform)).encode())
    for path in sorted((FOLDER / "source").iterdir()):
        digest.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


if __name__ == "__main__":
    problem = build()
    print(f"no compiled core: {problem}" if problem else LIBRARY)
    sys.exit(problem is not None)
