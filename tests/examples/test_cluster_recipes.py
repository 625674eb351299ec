"""The recipes in `examples/cluster`, run here as far as can be: their schedulers are a few lines of shell."""

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from traceformer import TraceStore
from traceformer.store.commits import verify_run

RECIPES = Path(__file__).parents[2] / "examples/cluster"
ROOT = RECIPES.parents[1]
ASKED = {"MODEL": "byte", "DATASET": "demo"}
WHAT = ("--capture", "logits", "--layers", "0")

pytestmark = pytest.mark.slow


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of stand-ins: `traceformer` is this one, `srun` runs what it is told, `scontrol` notes it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    python = shlex.quote(sys.executable)
    scripts = {
        "traceformer": f'exec {python} -m traceformer "$@"',
        "ray": f'exec {python} -m ray.scripts.scripts "$@"',
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "scontrol": f'[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> {shlex.quote(str(tmp_path))}/asked',
        "pip": "true",
        "hf": 'until [ "$1" = python:3.12 ]; do [ "$1" = --env ] && export "$2"; shift; done; shift; exec "$@"',
    }
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


def run(programs: Path, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    paths = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, env={**os.environ, **ASKED, **paths, **environment}, capture_output=True, text=True, timeout=240
    )


def test_tasks_of_an_array_make_one_run_and_one_that_is_put_back_finds_it_finished(
    programs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_JOB_ID": "7"}
    for task in ("3", "4", "3"):
        done = run(
            programs,
            ["bash", str(RECIPES / "slurm.sbatch"), *WHAT],
            **array,
            OUT=str(out),
            SLURM_ARRAY_TASK_ID=task,
            SLURM_CPUS_PER_TASK="1",
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out} is finished\n"
    assert verify_run(out) == []
    assert TraceStore(out).n == 64
    assert not (tmp_path / "asked").exists()


def test_a_task_that_is_to_end_is_put_back_into_the_queue(programs: Path, tmp_path: Path) -> None:
    (programs / "traceformer").write_text("#!/bin/bash\nexit 75\n")
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_JOB_ID": "7"}
    command = ["bash", str(RECIPES / "slurm.sbatch")]
    done = run(programs, command, **array, OUT=str(tmp_path / "run"), SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == 75
    assert (tmp_path / "asked").read_text() == "requeue 7_1\n"


def test_the_array_is_one_that_slurm_would_read() -> None:
    lines = (RECIPES / "slurm.sbatch").read_text().splitlines()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH "))
    assert options["array"] == "0-7"
    assert options["signal"] == "USR1@120"
    assert "requeue" in options
    code = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[code:])  # SLURM reads none behind the first command


def test_the_task_of_skypilot_is_one_and_its_commands_make_a_run(programs: Path, tmp_path: Path) -> None:
    task: Mapping[str, Any] = yaml.safe_load((RECIPES / "skypilot.yaml").read_text())
    assert task.keys() == {"name", "resources", "num_nodes", "envs", "setup", "run"}
    for rank in range(task["num_nodes"]):
        environment = {**task["envs"], **ASKED, "OUT": str(tmp_path / "run"), "SKYPILOT_NODE_RANK": str(rank)}
        commands = task["setup"] + task["run"]
        done = run(programs, ["bash", "-c", commands], **environment, SKYPILOT_NUM_NODES=str(task["num_nodes"]))
        assert done.returncode == 0, done.stderr
    assert verify_run(tmp_path / "run") == []


def test_a_job_of_hugging_face_keeps_its_run_in_the_bucket(programs: Path, tmp_path: Path) -> None:
    """The job's own commands, with a folder in the place of the bucket; then the command that starts it, tried dry."""
    mount = tmp_path / "bucket"
    mount.mkdir()
    places = {"MOUNT": str(mount), "BUCKET": "me/traces"}
    command = ["bash", str(RECIPES / "hf_jobs.sh"), *WHAT]
    done = run(programs, command, **places, WORK=str(tmp_path / "work"))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in mount.iterdir()] == ["run"]
    assert verify_run(mount / "run") == []
    again = run(programs, command, **places, WORK=str(tmp_path / "other"))
    assert (again.returncode, again.stdout) == (0, "it is finished\n")
    (programs / "hf").write_text(f'#!/bin/bash\nexec {shlex.quote(sys.executable)} -m huggingface_hub.cli.hf "$@"\n')
    dry = run(programs, command, **places, FLAGS="--dry-run", HF_TOKEN="none")
    assert dry.returncode == 0, dry.stderr
    assert f"hf://buckets/me/traces:{mount}" in dry.stdout + dry.stderr


def test_a_cluster_of_ray_in_a_job_makes_a_run_and_ends_with_it(programs: Path, tmp_path: Path) -> None:
    """Two nodes, both of them this machine. What is said goes to a file: who stays would keep a pipe open."""
    port = "6399"
    job = {"SLURM_JOB_NODELIST": "here", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_ID": "9"}
    paths = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "PORT": port}
    environment = {**os.environ, **ASKED, **paths, **job, "OUT": str(tmp_path / "run")}
    with (tmp_path / "said").open("w") as said:
        command = ["bash", str(RECIPES / "ray.sbatch"), *WHAT]
        done = subprocess.run(command, env=environment, stdout=said, stderr=said, timeout=500, check=False)
    assert done.returncode == 0, (tmp_path / "said").read_text()
    assert verify_run(tmp_path / "run") == []
    assert {each.host.threads for each in TraceStore(tmp_path / "run").computed} == {1}
    with socket.socket() as left:
        assert left.connect_ex(("127.0.0.1", int(port))) != 0
    again = run(programs, command, **job, OUT=str(tmp_path / "run"))
    assert (again.returncode, again.stdout) == (0, f"{tmp_path / 'run'} is finished\n")
