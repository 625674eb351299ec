"""What a stranger gets: the package packed, and installed where there is nothing else.

    python -m tests.empty_environment [PYTHON ...]    # minutes: everything is fetched and installed anew

1. `python -m build` makes an sdist and a wheel, in an environment that has nothing but `build`.
2. For each PYTHON (this one, if none is named) the wheel is installed into an empty environment, and `traceformer demo`
   runs there. On the PATH are that environment's programs and no others: no make, no git, no Node.
3. The sdist becomes a wheel: with a C compiler one that is the first byte for byte, and there, where there is none, one
   that lacks the compiled core and nothing else.

What each step took and how large it came out is printed; the versions are those of `constraints.txt`.
"""

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNWANTED = ("make", "git", "node", "npm", "cc", "gcc", "clang")
CORE = "traceformer/core/libcore.so"


def main(pythons: list[str]) -> int:
    """Returns 0 if all of it works; what does not ends it with an error."""
    with tempfile.TemporaryDirectory(prefix="traceformer-packed-") as folder:
        place = Path(folder)
        wheel, sdist = packed(place)
        for python in pythons or [sys.executable]:
            tried(place, python, wheel, sdist)
    return 0


def packed(place: Path) -> tuple[Path, Path]:
    """Returns the wheel and the sdist."""
    venv.create(place / "builder", with_pip=True)
    builder = place / "builder/bin/python"
    run([builder, "-m", "pip", "install", "--quiet", "build"], "install build")
    run([builder, "-m", "build", "--outdir", place / "dist", ROOT], "python -m build")
    [wheel], [sdist] = (place / "dist").glob("*.whl"), (place / "dist").glob("*.tar.gz")
    for file in (wheel, sdist):
        print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")
    line = [builder, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place / "again", sdist]
    run(line, "a wheel of the sdist")
    assert filecmp.cmp(place / "again" / wheel.name, wheel, shallow=False), "the sdist becomes another wheel"
    return wheel, sdist


def tried(place: Path, python: str, wheel: Path, sdist: Path) -> None:
    """Installs the wheel into an empty environment of a Python, runs the demo, and builds the sdist there."""
    version = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    root = place / version.replace(" ", "-")
    run([python, "-m", "venv", root], f"{version}: an empty environment")
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    alone = {**kept, "PATH": str(root / "bin")}
    found = [name for name in UNWANTED if shutil.which(name, path=alone["PATH"])]
    assert not found, f"{found} are in an empty environment"
    pip = [root / "bin/python", "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel], f"{version}: install", alone)
    run([root / "bin/traceformer", "demo"], f"{version}: traceformer demo", alone, place)
    plain = place / "plain" / root.name
    line = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", plain, sdist]
    run(line, f"{version}: a wheel of the sdist, without a compiler", alone)
    [other] = plain.glob("*-py3-none-any.whl")
    lacking = files_in(wheel) ^ files_in(other)
    assert lacking <= {CORE}, f"without a compiler {lacking} differ"


def files_in(wheel: Path) -> set[str]:
    """Returns the names of a wheel's files, but for those that tell of the others."""
    with zipfile.ZipFile(wheel) as packed:
        return {name for name in packed.namelist() if ".dist-info/" not in name}


def run(
    line: list[str | Path], what: str, environment: dict[str, str] | None = None, folder: Path | None = None
) -> None:
    start = time.monotonic()
    subprocess.run(list(map(str, line)), env=environment, cwd=folder, check=True)
    print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
