"""A cluster of several machines, played by Ray's own on one: it loses a node, and finishes."""

from collections.abc import Callable
from pathlib import Path

import pytest

import traceformer as tf
from tests.conftest import skip
from traceformer.capture.workers.engine import Ray
from traceformer.progress import Progress
from traceformer.store.commits import verify_run

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:texts are cut")
def test_a_cluster_that_loses_a_node_finishes(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    try:
        import ray
        from ray.cluster_utils import Cluster
    except ImportError:
        skip("ray")
    model, out, notices = str(tiny_folder("gpt2")), tmp_path / "run", list[str]()
    one = tf.record(model, "demo", "attn resid", shard_examples=2, out=tmp_path / "one")
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        other = cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        lost = False

        def lose(progress: Progress) -> None:
            nonlocal lost
            if progress.is_notice:
                notices.append(progress.message)
            if not lost and progress.examples_done >= 20:
                lost = True
                cluster.remove_node(other, allow_graceful=False)

        run = tf.record(model, "demo", "attn resid", shard_examples=2, out=out, engine=Ray(workers=2), progress=lose)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert lost
    assert any(" died" in notice for notice in notices)
    assert verify_run(out) == []
    assert one.folder is not None
    assert run.folder is not None
    for path in one.folder.rglob("c.*"):
        assert (run.folder / path.relative_to(one.folder)).read_bytes() == path.read_bytes()
