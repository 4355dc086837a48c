"""Which of how many processes this one is, and how it joins the others.

The engine is JAX's own: every process runs the same program, and `jax.distributed` makes one mesh of their devices.
What is added: where the settings come from, and that process 0 listens on one address only. JAX is not imported
before `join`.
"""

import os
import re
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from lepton_jax.errors import InputError

HEARTBEAT = 10  # seconds of silence after which a process is taken for dead, and all others leave
PATIENCE = 60  # seconds for the coordinator's name to appear in a name service
WILDCARDS = ("0.0.0.0", "[::]", "::", "*")
VARIABLES = {
    "coordinator": "LEPTON_COORDINATOR",
    "process_id": "LEPTON_PROCESS_ID",
    "processes": "LEPTON_PROCESSES",
}
BIND = "LEPTON_COORDINATOR_BIND"
SIMULATED = "xla_force_host_platform_device_count"


class Membership(NamedTuple):
    """One process among several."""

    coordinator: str  # HOST:PORT at which process 0 is reached
    process_id: int
    processes: int
    bind: str  # HOST:PORT at which process 0 listens: the coordinator's, unless LEPTON_COORDINATOR_BIND says otherwise


class Setting(NamedTuple):
    """A value and who gave it: a flag or a variable."""

    source: str
    value: str

    def __str__(self) -> str:
        return f"{self.source} {self.value}"


def find(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Membership | None:
    """This process's membership; None where it is the only one.

    Address, id and count come each from the flags (`coordinator`, `process_id`, `processes`; None where not given),
    else from LEPTON_*, else from the scheduler (Open MPI, Slurm, a Kubernetes Job). Raises InputError where they are
    incomplete or contradict each other.
    """
    own = {
        name: Setting(variable, environment[variable])
        for name, variable in VARIABLES.items()
        if variable in environment
    }
    own |= {
        name: Setting(f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items() if value is not None
    }
    given = {**scheduled(environment), **own}
    if not own and "processes" not in given:
        return None  # an index alone, as every indexed Job of Kubernetes has, makes no group
    if "processes" in given and _count(given["processes"], 1) == 1 and _count(given.get("process_id"), 0) == 0:
        return None
    return _complete(given, environment)


def _complete(given: Mapping[str, Setting], environment: Mapping[str, str]) -> Membership:
    if missing := [name for name in VARIABLES if name not in given]:
        known = ", ".join(map(str, given.values()))
        words = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        variables = " and ".join(VARIABLES[name] for name in missing)
        raise InputError(
            f"{known}: one of several processes, but {words} is not known", f"give {words}, or {variables}"
        )
    process_id, processes = _count(given["process_id"], 0), _count(given["processes"], 1)
    if process_id >= processes:
        problem = f"{given['process_id']} and {given['processes']} contradict each other"
        raise InputError(problem, f"ids of {processes} process(es) go from 0 to {processes - 1}")
    coordinator = address(given["coordinator"])
    if coordinator.rsplit(":", 1)[0] in WILDCARDS:
        problem = f"{given['coordinator']} stands for every address, and names no machine"
        raise InputError(problem, f"name the machine of process 0; {BIND} is the address that it listens on")
    bind = address(Setting(BIND, environment[BIND])) if environment.get(BIND) else coordinator
    return Membership(coordinator, process_id, processes, bind)


def _count(setting: Setting | None, least: int) -> int:
    if setting is None:
        return least
    if not re.fullmatch(r"\d{1,9}", setting.value) or int(setting.value) < least:
        raise InputError(f"{setting} is not a whole number of at least {least}", "ids count from 0, processes from 1")
    return int(setting.value)


def address(setting: Setting) -> str:
    """HOST:PORT as it was given. Raises InputError for anything else."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(\d{1,5})", setting.value)
    if not found or not 0 < int(found[2]) < 2**16:
        raise InputError(f"{setting} is not HOST:PORT", "write it as 127.0.0.1:8476, node1:8476, or [::1]:8476")
    return setting.value


def scheduled(environment: Mapping[str, str]) -> dict[str, Setting]:
    """What the scheduler that started this process says; the innermost one, for mpirun runs inside of Slurm too."""
    for scheduler in (_open_mpi, _slurm, _kubernetes):
        if found := scheduler(environment):
            return found
    return {}


def _open_mpi(environment: Mapping[str, str]) -> dict[str, Setting]:
    names = {"process_id": "OMPI_COMM_WORLD_RANK", "processes": "OMPI_COMM_WORLD_SIZE"}
    found = _present(names, environment)
    # mpirun's own address, on the machine of rank 0 as a rule: "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    parts = re.match(r"(\d+)\.\d+;(?:tcp://([^,:]+)|tcp6://(?:\[([^,\]]+)))", uri)
    if found and parts:
        host = parts[2] or f"[{parts[3]}]"
        found["coordinator"] = Setting("OMPI_MCA_orte_hnp_uri", f"{host}:{_port(int(parts[1]) // 2**12)}")
    return found


def _slurm(environment: Mapping[str, str]) -> dict[str, Setting]:
    """Within srun only: the batch script itself has no SLURM_STEP_NODELIST, and is one process."""
    if not {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"} <= set(environment):
        return {}
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    found = _present({"process_id": "SLURM_PROCID", "processes": count}, environment)
    nodes, job = environment["SLURM_STEP_NODELIST"], environment["SLURM_JOB_ID"]
    # the first of "node1", "node1,node2", "node[001-004,7]" and "node[1-2]-ib"
    first = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    step = environment.get("SLURM_STEP_ID", "0")
    if first and job.isdigit():
        host = "".join(part or "" for part in first.groups())
        port = _port(int(job) + (int(step) if step.isdigit() else 0))
        found["coordinator"] = Setting("SLURM_STEP_NODELIST", f"{host}:{port}")
    return found


def _kubernetes(environment: Mapping[str, str]) -> dict[str, Setting]:
    """An indexed Job says nothing but the index: scripts/kubernetes/jobset.yaml gives the rest as LEPTON_*."""
    return _present({"process_id": "JOB_COMPLETION_INDEX"}, environment)


def _present(names: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, Setting]:
    return {
        name: Setting(variable, environment[variable]) for name, variable in names.items() if variable in environment
    }


def _port(job: int) -> int:
    """A port that all processes of a job agree on, among the highest 4096: as JAX chooses it."""
    return 2**16 - 2**12 + job % 2**12


def share(devices: int, processes: int) -> int:
    """The devices of each process. Raises InputError where they do not divide."""
    if devices % processes:
        problem = f"a mesh of {devices} device(s) cannot be split over {processes} processes"
        raise InputError(problem, f"use a mesh of {devices // processes * processes or processes} devices")
    return devices // processes


def join(membership: Membership, devices: int | None = None) -> None:
    """Become one of several: afterwards `jax.devices()` has the devices of all processes.

    devices: of the whole mesh; where there are only CPUs each process simulates its share of them. Must come before
    JAX starts its backend, and returns once all processes are there. Raises InputError for a mesh that cannot be
    split and for a coordinator that has no address, and RuntimeError where the others do not come.
    """
    each = None if devices is None else share(devices, membership.processes)
    if each is not None and SIMULATED in os.environ.get("XLA_FLAGS", ""):
        problem = f"XLA_FLAGS sets {SIMULATED}, which {membership.processes} processes set by themselves"
        raise InputError(problem, "unset it: each process simulates its share of the mesh")
    here = own_address(membership.coordinator)
    import jax

    if each is not None:
        jax.config.update("jax_num_cpu_devices", each)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        membership.coordinator,
        membership.processes,
        membership.process_id,
        cluster_detection_method="deactivate",
        coordinator_bind_address=membership.bind,
        heartbeat_timeout_seconds=HEARTBEAT,
    )
    _collectives_at(here)


def part() -> None:
    """Leave the others once all are leaving; nothing where this process is the only one."""
    import jax

    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def own_address(coordinator: str, patience: float = PATIENCE) -> str:
    """This machine's address on the way to the coordinator: loopback for one on loopback.

    Waits up to `patience` seconds for the name to be known, as a new pod's is not at once. Raises InputError.
    """
    host, port = coordinator.rsplit(":", 1)
    deadline = time.monotonic() + patience
    while True:
        try:
            family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as probe:
                probe.connect(address)  # of a datagram socket: asks for the route, and sends nothing
                return str(probe.getsockname()[0])
        except OSError as error:
            if time.monotonic() > deadline:
                problem = f"the coordinator {coordinator} cannot be reached: {error.strerror or error}"
                raise InputError(problem, "name the machine of process 0 as this one knows it") from error
            time.sleep(min(1.0, patience))


def _collectives_at(address: str) -> None:
    """Have Gloo, too, listen on this address: by itself it takes what the machine's name stands for.

    JAX has no public setting for it; this is the function behind its own CPU backend.
    """
    from jax._src import distributed, xla_bridge
    from jaxlib import _jax  # pyright: ignore[reportAttributeAccessIssue]

    def client() -> Any:
        collectives = _jax.make_gloo_tcp_collectives(distributed.global_state.client, hostname=address)
        return xla_bridge.make_cpu_client(collectives)

    xla_bridge.register_backend_factory("cpu", client, priority=0, fail_quietly=False)
