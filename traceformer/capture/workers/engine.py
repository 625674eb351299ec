"""Ray as the engine of work that many processes do: its settings, its sessions, and its tasks.

Ray is started on this machine alone, unless there is an address of a cluster, or Ray is at work in this process
already. It is an extra, imported where it is used.
"""

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from traceformer.errors import NotFound, Unsupported, UsageError, check_number, check_whole

if TYPE_CHECKING:
    from traceformer.models.loaded import LoadedModel

__all__ = ["Engine", "Ray", "as_engine", "check_apart", "result_of", "use_threads"]

P = TypeVar("P")
R = TypeVar("R")

_OBJECT_STORE_BYTES = 100 << 20  # what passes through it are names and counts: arrays go to the run's files
_RETRIES = 100
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ray:
    """Workers that Ray starts, each a process of its own.

        tf.record("gpt2", "ud_ewt", out="traces/x", engine=tf.Ray(workers=4, gpus_per_worker=1))

    Attributes:
        workers: How many work at a time.
        address: Where a cluster is: `auto` for the one that this machine is part of, or `ray://host:port`. For None,
            the environment's `RAY_ADDRESS`, or else this machine alone.
        gpus_per_worker: How many GPUs each has to itself; a part of one for several workers on each.
        threads_per_worker: How many threads, which are so many processors to Ray.
    """

    workers: int = 2
    address: str | None = None
    gpus_per_worker: float = 0
    threads_per_worker: int = 1

    def check(self) -> None:
        """Makes sure that the settings mean something.

        Raises:
            UsageError: they do not.
        """
        check_whole("workers", self.workers, 1)
        check_whole("threads_per_worker", self.threads_per_worker, 1)
        check_number("gpus_per_worker", self.gpus_per_worker)
        if self.gpus_per_worker < 0:
            raise UsageError(f"`gpus_per_worker={self.gpus_per_worker}`", hint="0 or more")

    @property
    def resources(self) -> dict[str, Any]:
        """What each worker takes, as Ray has it."""
        return {"num_cpus": self.threads_per_worker, "num_gpus": self.gpus_per_worker}

    @contextmanager
    def session(self) -> Generator[Any]:
        """Yields the module `ray`, at work; what was started for it is ended with the block.

        Raises:
            Unsupported: Ray is not installed.
            NotFound: there is no cluster at the address.
            UsageError: no machine of it could ever have such a worker.
        """
        self.check()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of each session
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise Unsupported("Ray is not installed", hint='pip install "traceformer[ray]"') from None
        if ray.is_initialized():
            self._check_fits(ray)
            yield ray
            return
        with _handlers_kept():
            self._begin(ray)
        try:
            self._check_fits(ray)
            yield ray
        finally:
            with _handlers_kept():
                ray.shutdown()

    def _begin(self, ray: Any) -> None:
        address = self.address or os.environ.get("RAY_ADDRESS")
        if address is None:
            ray.init(
                address="local",
                num_cpus=self.workers * self.threads_per_worker,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            # One that `ray start` began asks for a token (2.60), which is not read unless the environment says so.
            hint = "`ray start` begins one; RAY_AUTH_MODE=token in the environment if it asks for a token"
            raise NotFound(f"no Ray cluster at {address}", why=str(error).split("\n")[0], hint=hint) from error

    def _check_fits(self, ray: Any) -> None:
        """Makes sure that some machine of the cluster is large enough for a worker: Ray would wait for ever."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted = {"CPU": self.threads_per_worker, "GPU": self.gpus_per_worker}
        if not any(all(node.get(name, 0) >= count for name, count in wanted.items()) for node in nodes):
            there = ", ".join(f"{node.get('CPU', 0):g} CPUs {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise UsageError(
                f"a worker of {self.threads_per_worker:g} CPUs and {self.gpus_per_worker:g} GPUs",
                why=f"no machine of the cluster has them ({there})",
                hint="fewer `threads_per_worker`, or `gpus_per_worker`",
            )

    def map(self, function: Callable[[P], R], parts: Iterable[P]) -> Iterator[R]:
        """Yields `function(part)` for each part, in their order; a part whose worker dies is computed anew.

        Both have to be what can be pickled. An error of the function's is raised as it is.
        """
        with self.session() as ray:
            task = ray.remote(**self.resources, max_retries=_RETRIES)(_computed)
            under_way: deque[Any] = deque()
            try:
                for part in parts:
                    under_way.append(task.remote(function, self.threads_per_worker, part))
                    if len(under_way) > 2 * self.workers:
                        yield result_of(ray, under_way.popleft())
                while under_way:
                    yield result_of(ray, under_way.popleft())
            finally:
                for left in under_way:
                    ray.cancel(left, force=True)


Engine = Ray | str | None
"""How an engine may be named: by its settings, as "ray", or not at all."""


def as_engine(engine: Engine) -> Ray | None:
    """Returns the engine that is meant.

    Raises:
        UsageError: there is none of that name.
    """
    if engine is None or isinstance(engine, Ray):
        return engine
    if engine != "ray":
        raise UsageError(f"no engine {engine!r}", hint='`engine="ray"`')
    return Ray()


def check_apart(model: "str | Path | LoadedModel") -> str | Path:
    """Returns a model as workers can load it: by its name, or from its folder.

    Raises:
        UsageError: it is loaded already.
    """
    if not isinstance(model, str | Path):
        raise UsageError("a loaded model, and `engine`", why="each worker loads its own", hint="its name, or folder")
    return model


def use_threads(threads: int) -> None:
    """Has this process compute with so many threads, whatever computes: to be called before torch is imported."""
    for name in _THREADS:
        os.environ[name] = str(threads)


def result_of(ray: Any, reference: Any) -> Any:
    """Returns what a task or a method returned; what it raised is raised as it is."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _computed(function: Callable[[P], R], threads: int, part: P) -> R:
    use_threads(threads)
    return function(part)


@contextmanager
def _handlers_kept() -> Generator[None]:
    """Gives SIGTERM back to whom it was: Ray takes it where it is started, and ends the process by it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
