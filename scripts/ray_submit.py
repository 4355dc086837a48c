"""Several nodes of a Ray cluster, one process on each.

ray job submit --working-dir . -- python scripts/ray_submit.py --nodes 2 -- python -m experiments.resnet --run DIR ...

Ray places the processes and tells where they are; each is watched by a launcher of its own (--member), and where one
fails all are started again. Code and the run directory lie where every node sees them. Needs the package `ray`.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from ray.util.placement_group import placement_group  # pyright: ignore[reportMissingImports]
from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
    PlacementGroupSchedulingStrategy,
)

from lepton_jax.errors import Exit
from lepton_jax.launch import verdict

RESTARTS = 3
GRACE = 60.0  # seconds to save and leave


class Node:
    """One process on one node."""

    def __init__(self):
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """HOST:PORT at which process 0 is reached if it runs here."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"{host}:{probe.getsockname()[1]}"

    def run(self, command: Sequence[str], settings: Mapping[str, str]) -> int:
        """Run one process to its end: the exit code."""
        launcher = [sys.executable, "-m", "lepton_jax.launch", "--member", "--", *command]
        self._process = subprocess.Popen(launcher, env={**os.environ, **settings})
        return self._process.wait()

    def stop(self) -> None:
        """Have the process save and leave; the launcher sees to it that it does."""
        if self._process is not None:
            self._process.terminate()


def live(nodes: Sequence[Any], command: Sequence[str]) -> list[tuple[int, int]]:
    """One life on all nodes: each process and its exit code, in the order in which they left."""
    address = ray.get(nodes[0].address.remote())
    running = {}
    for number, node in enumerate(nodes):
        settings = {
            "LEPTON_COORDINATOR": address,
            "LEPTON_PROCESS_ID": str(number),
            "LEPTON_PROCESSES": str(len(nodes)),
        }
        running[node.run.remote(list(command), settings)] = number
    left, asked = [], False
    while running:
        (ready, *_), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(ready)
        try:
            code = ray.get(ready)
        except ray.exceptions.RayError as error:
            print(f"process {number}: {error}", file=sys.stderr)
            code = Exit.INTERNAL
        left.append((number, code))
        if code != Exit.DONE and not asked:
            asked = True
            for other in running.values():
                nodes[other].stop.remote()
    return left


def main(arguments: Sequence[str]) -> int:
    """Live after life, until it is done or cannot be helped: the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--cpus", type=float, default=1, help="of each node")
    parser.add_argument("--gpus", type=float, default=0, help="of each node")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    given, command = parser.parse_args(arguments[:cut]), arguments[cut + 1 :]
    if not command:
        parser.error("there is no command after --")
    ray.init(address="auto")
    bundle = {"CPU": given.cpus, **({"GPU": given.gpus} if given.gpus else {})}
    group = placement_group([bundle] * given.nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    failures = 0
    while True:
        # anew for every life: where a node is lost, Ray finds another for its place
        nodes = [
            ray.remote(Node)
            .options(
                max_concurrency=2,  # `stop` has to get through while `run` waits
                num_cpus=given.cpus,
                num_gpus=given.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
            )
            .remote()
            for number in range(given.nodes)
        ]
        number, code = verdict.verdict(live(nodes, command))
        for node in nodes:
            ray.kill(node)
        if code in verdict.FINAL:
            return code
        failures = 0 if code == Exit.PREEMPTED else failures + 1
        print(f"process {number} {verdict.described(code)}; failure {failures} in a row", file=sys.stderr)
        if failures > RESTARTS:
            return code
        time.sleep(verdict.delay(failures, 1.0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
