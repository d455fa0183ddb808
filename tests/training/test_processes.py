"""Which GPUs the processes of a job use, from the variables that schedulers set."""

import pytest

from mixformer_jax.models.config import ConfigError
from mixformer_jax.training.distributed import check_devices, local_device_ids


def slurm(tasks_per_node, node=0, local=0, gpus="0,1,2,3", **more):
    found = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_TASKS_PER_NODE": tasks_per_node,
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        "CUDA_VISIBLE_DEVICES": gpus,
        **more,
    }
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        # One task a node: all of its GPUs, however many.
        (slurm("1"), []),
        (slurm("1(x2)", node=1), []),
        (slurm("1(x2)", node=1, gpus=None), []),
        (slurm(None, SLURM_TASKS_PER_NODE="1(x2)"), []),
        (slurm(None, SLURM_NTASKS_PER_NODE="1"), []),
        # Several that see the same GPUs share them.
        (slurm("4", local=2, SLURM_GPUS_ON_NODE="4"), [2]),
        (slurm("2(x3),1", node=2, local=1, SLURM_GPUS_ON_NODE="4"), [2, 3]),
        (slurm("2(x3),1", node=3, SLURM_GPUS_ON_NODE="4"), []),
        (slurm("2", local=1), [2, 3]),
        # Several, each with GPUs of its own.
        (slurm("4", local=3, gpus="3", SLURM_GPUS_ON_NODE="4"), []),
        (slurm("4", local=3, gpus="0", SLURM_GPUS_PER_TASK="1"), []),
        (slurm("2", local=1, gpus="2,3", SLURM_GPUS_PER_TASK="a100:2"), []),
        (slurm("2", local=1, gpus="2,3", SLURM_GPUS_ON_NODE="4"), []),
        # Nothing known, or somebody has chosen.
        (slurm("4", local=1, gpus=None), None),
        ({}, None),
        (slurm("1", JAX_LOCAL_DEVICE_IDS="0"), None),
        # Open MPI.
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, []),
        (
            {
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "CUDA_VISIBLE_DEVICES": "GPU-8f2c,GPU-1a7e",
            },
            [1],
        ),
    ],
)
def test_gpus_of_a_process(environ, expected):
    assert local_device_ids(environ) == expected


def test_gpus_that_do_not_divide():
    with pytest.raises(ConfigError, match=r"4 GPUs \(CUDA_VISIBLE_DEVICES=0,1,2,3\) do not divide among the 3"):
        local_device_ids(slurm("3", SLURM_GPUS_ON_NODE="4"))


def test_the_table_of_processes():
    shared = ["a\t2\tH100\t0,1,2,3", "a\t2\tH100\t0,1,2,3", "b\t1\tH100\t0"]
    assert check_devices(shared) == [
        "process 0 on a: 2 x H100",
        "process 1 on a: 2 x H100",
        "process 2 on b: 1 x H100",
    ]
    # Bound to tasks, and numbered from 0 or as on the node; no GPUs at all.
    assert len(check_devices(["a\t1\tH100\t0", "a\t1\tH100\t0"])) == 2
    assert len(check_devices(["a\t1\tH100\t2", "a\t1\tH100\t3"])) == 2
    assert len(check_devices(["a\t8\tcpu\t"])) == 1


def test_gpus_left_idle_are_an_error():
    with pytest.raises(ConfigError, match=r"a has 4 GPUs in sight and uses 1 of them:\n  process 0 on a: 1 x H100"):
        check_devices(["a\t1\tH100\t0,1,2,3", "b\t4\tH100\t0,1,2,3"])
