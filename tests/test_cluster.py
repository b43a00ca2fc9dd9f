"""The examples for clusters start the project's commands with valid flags.

No cluster is needed: gcloud and srun are replaced by scripts that run their command.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from ixjax.commands import main as commands
from ixjax.commands.arguments import parse
from ixjax.pipeline import RunConfig

CLUSTER = Path(__file__).parents[1] / "launch" / "cluster"
SHELL = ("tpu_pod.sh", "slurm.sbatch")
GIVEN = ("--config", "quickstart", "--dpo.beta", "0.2")


def started(line: list[str]) -> tuple[str, RunConfig]:
    """Return the stage of `python -m launch.STAGE FLAGS`, and the parsed settings."""
    at = line.index("-m")
    stage = line[at + 1].removeprefix("launch.")
    assert stage in commands.STAGES
    return stage, parse(RunConfig, line[at + 2 :], stage=stage, summary="")


@pytest.fixture
def run_script(tmp_path):
    """Return a function that runs a script with stand-ins first on PATH and returns its output."""

    def run(script: str, *arguments: str, stand_ins: dict[str, str], **environment: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, body in stand_ins.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (folder / name).chmod(0o755)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        line = ["bash", str(CLUSTER / script), *arguments]
        ran = subprocess.run(
            line,
            env=os.environ | environment | {"PATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return ran.stdout

    return run


@pytest.mark.parametrize("script", SHELL)
def test_scripts_are_shell(script):
    subprocess.run(["bash", "-n", str(CLUSTER / script)], check=True)


@pytest.mark.parametrize("stage", ["sft", "search"])
def test_every_host_of_a_pod_starts_the_same_command(run_script, stage, tmp_path):
    checkout(tmp_path / "ixjax")
    printed = run_script(
        "tpu_pod.sh",
        stage,
        *GIVEN,
        # gcloud passes its --command to a shell on the host, where curl asks for the host's index.
        stand_ins={"gcloud": 'exec bash -c "${@: -1}"', "curl": "echo 3"},
        HOME=str(tmp_path),
        TPU_NAME="slice",
        ZONE="zone",
        RUN="/runs/with space",
        HOSTS="4",
    )
    found, config = started(shlex.split(printed))
    assert (found, config.out, config.dpo.beta) == (stage, "/runs/with space", 0.2)
    if stage == "search":
        assert (config.processes.count, config.processes.index) == (4, 3)
    else:
        assert (config.distributed.detect, config.distributed.timeout) == ("always", 900)


@pytest.mark.parametrize("stage", ["dpo", "search"])
def test_every_task_of_a_slurm_job_starts_the_same_command(run_script, stage, tmp_path):
    checkout(tmp_path)
    printed = run_script(
        "slurm.sbatch",
        stage,
        *GIVEN,
        stand_ins={"srun": 'shift; exec "$@"'},
        SLURM_NTASKS="2",
        SLURM_PROCID="1",
    )
    found, config = started(shlex.split(printed))
    assert (found, config.dpo.beta) == (stage, 0.2)
    if stage == "search":
        assert (config.processes.count, config.processes.index) == (2, 1)
    else:
        assert config.distributed.timeout == 900


def test_every_pod_of_a_job_starts_the_same_command():
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    spec = job["spec"]
    assert (job["kind"], spec["completionMode"]) == ("Job", "Indexed")
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    [container] = spec["template"]["spec"]["containers"]
    named = {e["name"]: e.get("value", "1") for e in container["env"]}
    line = [re.sub(r"\$\((\w+)\)", lambda m: named[m[1]], word) for word in container["args"]]
    _, config = started([*container["command"], *line])
    together = config.distributed
    assert spec["completions"] == spec["parallelism"] == together.count == int(named["COUNT"])
    assert together.index == 1
    first = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert together.coordinator.rpartition(":")[0] == first


def checkout(folder: Path) -> None:
    """Make a folder whose Python prints its arguments."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text("#!/usr/bin/env bash\nprintf '%q ' python \"$@\"\n")
    python.chmod(0o755)
