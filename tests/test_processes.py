"""Where a process learns that it is one of several; and two real ones on loopback."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest
from jax._src.clusters import ompi_cluster, slurm_cluster

from lepton_jax import processes
from lepton_jax.errors import InputError
from lepton_jax.processes import Membership

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = {"coordinator": "node1:8476", "process_id": 1, "processes": 2}
OURS = {"LEPTON_COORDINATOR": "node2:8476", "LEPTON_PROCESS_ID": "2", "LEPTON_PROCESSES": "4"}
SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[007-012,30]",
    "SLURM_NTASKS": "6",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "0",
}
MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_RANK": "1",
}


def find(environment, **flags):
    return processes.find(flags, environment)


def test_a_process_alone_is_no_member():
    batch_script = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}
    indexed_job = {"JOB_COMPLETION_INDEX": "7"}
    one_task = {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    for environment in ({}, batch_script, indexed_job, one_task):
        assert find(environment) is None
    assert find({}, processes=1) is None


def test_flags_come_before_variables_and_these_before_the_scheduler():
    everything = {**SLURM, **MPI, **OURS}
    assert find(everything, **FLAGS) == Membership("node1:8476", 1, 2, "node1:8476")
    assert find(everything) == Membership("node2:8476", 2, 4, "node2:8476")
    assert find({**SLURM, **MPI}).processes == 3  # mpirun runs inside of the Slurm job
    assert find(SLURM).processes == 6
    # each of the three by itself
    assert find({**SLURM, "LEPTON_COORDINATOR": "other:1234"}) == Membership("other:1234", 5, 6, "other:1234")
    assert find(OURS, process_id=3).process_id == 3


def test_a_kubernetes_job_gives_the_index_and_its_manifest_the_rest():
    manifest = {"LEPTON_COORDINATOR": "lepton-0.lepton:8476", "LEPTON_PROCESSES": "2", "JOB_COMPLETION_INDEX": "1"}
    assert find(manifest) == Membership("lepton-0.lepton:8476", 1, 2, "lepton-0.lepton:8476")


@pytest.mark.parametrize("nodes", ["node1", "node1,node2", "node[001-0015],host2", "node[001,007-015],host2"])
def test_slurm_as_jax_reads_it(nodes, monkeypatch):
    environment = {**SLURM, "SLURM_STEP_NODELIST": nodes}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    theirs = slurm_cluster.SlurmCluster
    assert theirs.is_env_present()
    expected = (theirs.get_coordinator_address(1, None), theirs.get_process_id(), theirs.get_process_count())
    assert find(environment)[:3] == expected


@pytest.mark.parametrize(
    "uri", [MPI["OMPI_MCA_orte_hnp_uri"], "1314521088.0;tcp6://[2620:10d:c083:150e::3000:2,fe80::9b:1]:43370"]
)
def test_open_mpi_as_jax_reads_it(uri, monkeypatch):
    environment = {**MPI, "OMPI_MCA_orte_hnp_uri": uri}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    theirs = ompi_cluster.OmpiCluster
    address = find(environment).coordinator.replace("[", "").replace("]", "")
    assert address == theirs.get_coordinator_address(1, None)
    assert find(environment)[1:3] == (theirs.get_process_id(), theirs.get_process_count())


def test_two_steps_of_a_slurm_job_have_two_ports_and_a_suffix_is_kept():
    first, second = (find({**SLURM, "SLURM_STEP_ID": step}).coordinator for step in "01")
    assert first != second
    assert find({**SLURM, "SLURM_STEP_NODELIST": "node[3-4]-ib"}).coordinator.startswith("node3-ib:")


def test_process_0_listens_where_it_is_reached_unless_told_otherwise():
    told = {**OURS, "LEPTON_COORDINATOR_BIND": "0.0.0.0:8476"}
    assert find(told) == Membership("node2:8476", 2, 4, "0.0.0.0:8476")


REFUSED = {
    "an address alone": (
        {},
        {"coordinator": "node1:1"},
        "--coordinator node1:1: one of several",
        "--process-id and --proc",
    ),
    "an id alone": ({"LEPTON_PROCESS_ID": "1"}, {}, "LEPTON_PROCESS_ID 1: one of several", "LEPTON_COORDINATOR and"),
    "no address": (
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
        {},
        "--coordinator is not",
        "--coordinator",
    ),
    "an id too large": (OURS, {"process_id": 4}, "--process-id 4 and LEPTON_PROCESSES 4 contradict", "from 0 to 3"),
    "one process and id 1": (OURS, {"processes": 1}, "LEPTON_PROCESS_ID 2 and --processes 1 contradict", "from 0 to 0"),
    "no number": ({**OURS, "LEPTON_PROCESSES": "two"}, {}, "LEPTON_PROCESSES two is not a whole number", "from 1"),
    "no process": (OURS, {"processes": 0}, "--processes 0 is not a whole number of at least 1", "from 1"),
    "a negative id": (OURS, {"process_id": -1}, "--process-id -1 is not a whole number", "from 0"),
    "no port": (OURS, {"coordinator": "node1"}, "--coordinator node1 is not HOST:PORT", "node1:8476"),
    "no such port": (OURS, {"coordinator": "node1:65536"}, "is not HOST:PORT", "node1:8476"),
    "bare IPv6": (OURS, {"coordinator": "::1:80"}, "is not HOST:PORT", "[::1]:8476"),
    "every address": (OURS, {"coordinator": "0.0.0.0:80"}, "stands for every address", "LEPTON_COORDINATOR_BIND"),
    "every IPv6 address": (OURS, {"coordinator": "[::]:80"}, "stands for every address", "LEPTON_COORDINATOR_BIND"),
    "a bad bind": ({**OURS, "LEPTON_COORDINATOR_BIND": "eth0"}, {}, "LEPTON_COORDINATOR_BIND eth0 is not", "HOST:PORT"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_partial_or_contradictory_is_refused(case):
    environment, flags, problem, remedy = REFUSED[case]
    with pytest.raises(InputError) as error:
        find(environment, **flags)
    assert problem in error.value.problem
    assert remedy in error.value.remedy or remedy in error.value.problem


def test_a_mesh_is_split_evenly():
    assert processes.share(8, 2) == 4
    with pytest.raises(InputError, match="mesh of 8 device\\(s\\) cannot be split over 3 processes") as error:
        processes.share(8, 3)
    assert "6 devices" in error.value.remedy


def test_a_machine_is_known_by_its_address_on_the_way_to_the_coordinator():
    assert processes.own_address("127.0.0.1:8476") == "127.0.0.1"
    assert processes.own_address("[::1]:8476") == "::1"
    with pytest.raises(InputError, match=r"nowhere\.invalid:8476 cannot be reached"):
        processes.own_address("nowhere.invalid:8476", patience=0)


PROGRAM = """
import os, sys
import lepton_jax as lp
from lepton_jax import agreement, errors

def damaged():
    raise errors.DamagedError("a leaf is not as it was", "put a copy back")

def listening():
    mine = {os.readlink(link)[8:-1] for link in map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))
            if os.path.exists(link) and os.readlink(link).startswith("socket:[")}
    tables = [line.split() for name in ("tcp", "tcp6") for line in open("/proc/net/" + name).readlines()[1:]]
    return sorted({row[1].split(":")[0] for row in tables if row[3] == "0A" and row[9] in mine})

def main(config):
    import jax, numpy as np
    mesh = lp.mesh.make(config.mesh)
    rows = {"x": np.arange(2.0) + 2 * jax.process_index()}
    total = jax.jit(lambda batch: batch["x"].sum(), out_shardings=lp.mesh.replicated(mesh))
    print("sum", float(total(lp.mesh.place(rows, mesh))), jax.process_count(), jax.local_device_count(), flush=True)
    print("listening", *listening(), flush=True)
    try:
        agreement.shared(damaged)
    except lp.InputError as error:
        print("told", int(error.code), error.remedy, flush=True)
    if jax.process_index() == config.seed:
        raise ZeroDivisionError("ours")

lp.cli.run(main, lp.cli.Config, {"digits": lp.cli.Config(seed=9)})
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(*flags):
    """Two real processes of PROGRAM; where the system has no /proc they say nothing of listening."""
    environment = {**os.environ, "LEPTON_COORDINATOR": f"127.0.0.1:{free_port()}", "LEPTON_PROCESSES": "2"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-c", PROGRAM, "--mesh", "4x1", *flags]
    return [
        subprocess.Popen([*command, "--process-id", str(n)], env=environment, stdout=-1, stderr=-1, text=True)
        for n in range(2)
    ]


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="reads /proc/net/tcp")
def test_two_processes_share_a_mesh_and_listen_on_loopback_only():
    for process in started():
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "sum 6.0 2 2" in out
        assert "told 65 put a copy back" in out
        (heard,) = (line.split()[1:] for line in out.splitlines() if line.startswith("listening"))
        assert heard
        assert set(heard) <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, and as IPv6 writes it


def test_a_process_that_fails_leaves_at_once_with_70_and_does_not_wait_for_its_peer():
    failing, other = started("--seed", "0")
    try:
        _, err = failing.communicate(timeout=60)  # the shutdown barrier alone would take 300 s
        assert failing.returncode == 70
        assert err.splitlines()[-1] == "ZeroDivisionError: ours"
    finally:
        for process in (failing, other):
            process.kill()
            process.communicate()


def test_devices_that_xla_flags_simulate_are_refused(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    with pytest.raises(InputError, match="XLA_FLAGS sets"):
        processes.join(Membership("127.0.0.1:1", 0, 2, "127.0.0.1:1"), 8)


def test_a_mesh_that_cannot_be_split_is_refused_before_anyone_waits():
    with pytest.raises(InputError, match="3 device"):
        processes.join(Membership("127.0.0.1:1", 0, 2, "127.0.0.1:1"), 3)
    assert not jax.distributed.is_initialized()
