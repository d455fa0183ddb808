"""docs/pod.md: what its files for Slurm and Kubernetes start, and that its commands are commands."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from mixformer_jax.cli import _parser
from mixformer_jax.cli.console import parse_arguments
from mixformer_jax.config_files import default_settings, load_config
from mixformer_jax.training.distributed import local_device_ids
from mixformer_jax.training.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]
SBATCH, JOB, PAGE = (ROOT / "docs" / name for name in ("pod/train.sbatch", "pod/job.yaml", "pod.md"))


def experiment(arguments):
    """What `mixformer train ARGUMENTS` trains."""
    args = parse_arguments(_parser(), ["train", *arguments])
    config = load_config(args.config, args.overrides, default_settings(Experiment))
    return Experiment.from_mapping(config.to_dict()), args


def run_sbatch(tmp_path, status, *arguments, **environment):
    """The script with stand-ins for Slurm's programs, which note what they are asked."""
    for name, ends in (("srun", status), ("scontrol", 0)):
        program = tmp_path / name
        program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/{name}.txt\nexit {ends}\n')
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", **environment}
    return subprocess.run(["bash", SBATCH, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (2, False), (143, True)])
def test_the_sbatch_file_trains_and_queues_again(tmp_path, status, requeued):
    run = {"CONFIG": "table7:trackmae", "RUN": "/nfs/runs/x y", "SLURM_CPUS_PER_TASK": "12"}
    ended = run_sbatch(tmp_path, status, "--config.train.mesh=(8,2,1)", **run)
    assert ended.returncode == status, ended.stderr
    program, command, *arguments = (tmp_path / "srun.txt").read_text().splitlines()
    assert (program, command) == (".venv/bin/mixformer", "train")
    found, args = experiment(arguments)
    assert found.model.name == "mixvit_b_corner_v3" and str(args.out) == "/nfs/runs/x y"
    assert found.train.distributed and (found.train.workers, found.train.mesh) == (12, (8, 2, 1))
    assert (tmp_path / "scontrol.txt").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol.txt").read_text().split() == ["requeue", "17"]


def test_the_sbatch_file_says_what_it_lacks(tmp_path):
    ended = run_sbatch(tmp_path, 0, RUN="/nfs/x")
    assert ended.returncode != 0 and "CONFIG: name of a config" in ended.stderr
    assert not (tmp_path / "srun.txt").exists()


@pytest.mark.parametrize(("tasks", "gpus_each"), [("1", 8), ("8", 1)])
def test_both_layouts_of_tasks_share_the_gpus_of_a_node(tasks, gpus_each):
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", SBATCH.read_text(), re.MULTILINE))
    assert options["ntasks-per-node"] == "1" and options["signal"].startswith("TERM@")
    gpus = options["gpus-per-node"]
    seen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(int(gpus)))), "SLURM_GPUS_ON_NODE": gpus}
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": tasks, **seen}
    owned = [local_device_ids({**slurm, "SLURM_LOCALID": str(task)}) for task in range(int(tasks))]
    assert owned == ([[]] if tasks == "1" else [[task] for task in range(8)])  # none named: all
    assert int(gpus) == gpus_each * int(tasks)


def test_the_manifest_is_an_indexed_job_whose_pods_find_each_other():
    service, job = yaml.safe_load_all(JOB.read_text())
    assert (service["kind"], job["kind"], job["apiVersion"]) == ("Service", "Job", "batch/v1")
    name, spec = job["metadata"]["name"], job["spec"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] and pod["restartPolicy"] == "Never"
    container = pod["containers"][0]
    environment = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
    assert environment["JAX_COORDINATOR_ADDRESS"].partition(":")[0] == f"{name}-0.{pod['subdomain']}"
    assert environment["JAX_NUM_PROCESSES"] == str(spec["completions"])
    index = environment["JAX_PROCESS_ID"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert container["command"] == ["mixformer", "train"]
    found, args = experiment(container["args"])
    volumes = {each["name"] for each in pod["volumes"]}
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    assert str(args.out).startswith("/runs/") and set(mounts.values()) == volumes
    assert environment["XDG_CACHE_HOME"] in mounts and found.train.distributed
    roots = [each.root for each in (*found.data.datasets.values(), *found.data.validation.values())]
    assert len(roots) == 5 and all(root.startswith("gs://BUCKET/packed/") for root in roots)


def test_commands_of_the_page_are_commands():
    """Their arguments, not what they do."""
    blocks = re.findall(r"(?:^    .*\n)+", PAGE.read_text(), re.MULTILINE)
    lines = [re.sub(r"\\\n\s+", " ", block) for block in blocks]
    commands = [line.strip().partition(" # ")[0] for block in lines for line in block.splitlines()]
    ours = [shlex.split(command)[1:] for command in commands if command.startswith("mixformer ")]
    assert len(ours) > 10
    for arguments in ours:
        parse_arguments(_parser(), [each for each in arguments if each != "..."])
