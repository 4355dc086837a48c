"""What a machine can do, measured in about a second: arithmetic, memory, disk, and adding up over the network.

python -m lepton_jax.launch.probe rates DIRECTORY                          -> {"matmul", "memory", "disk", "free"}
python -m lepton_jax.launch.probe reduce HOST:PORT RANK COUNT              -> {"reduce"}; a token on standard input

GFLOP/s, GB/s, MB/s, bytes; MB/s. The supervisor runs it in processes of their own, so NumPy may be used here.
"""

import hmac
import json
import os
import pathlib
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

SIDE = 512  # of the matrices
MEMORY = 2**25  # bytes copied
DISK = 2**23  # bytes written
VECTOR = 2**20  # float32 numbers added up over all
PATIENCE = 20.0  # seconds for the others to come


def fastest(action: Callable[[], object], rounds: int = 3) -> float:
    """Seconds of the fastest of some calls: what disturbs can only slow down."""
    times = []
    for _ in range(rounds):
        before = time.perf_counter()
        action()
        times.append(time.perf_counter() - before)
    return min(times)


def rates(directory: str) -> dict[str, float]:
    """The rates of this machine; disk: written to the directory and on the disk. Raises OSError."""
    matrix = np.ones((SIDE, SIDE), np.float32)
    source, target = np.ones(MEMORY, np.uint8), np.empty(MEMORY, np.uint8)
    place = next(
        path for path in (pathlib.Path(directory), *pathlib.Path(directory).absolute().parents) if path.is_dir()
    )
    with tempfile.NamedTemporaryFile(dir=place, prefix=".lepton-probe-") as file:

        def write() -> None:
            file.seek(0)
            file.write(source[:DISK].tobytes())
            file.flush()
            os.fsync(file.fileno())

        return {
            "matmul": 2 * SIDE**3 / fastest(lambda: matrix @ matrix) / 1e9,
            "memory": MEMORY / fastest(lambda: np.copyto(target, source)) / 1e9,
            "disk": DISK / fastest(write) / 1e6,
            "free": float(shutil.disk_usage(place).free),
        }


def reduce(address: str, rank: int, count: int, token: bytes) -> tuple[np.ndarray, dict[str, float]]:
    """The sum of the vectors of `count` machines, and the MB/s of this one's connection, the best of three rounds.

    Each is served in turn, so that a slow connection slows down nobody else's. Raises OSError where one does not come.
    """
    total = vector = np.full(VECTOR, float(rank + 1), np.float32)
    best = 0.0
    peers = meet(address, rank, count, token)
    try:
        for _ in range(3):
            total, seconds = added(vector, peers[0]) if rank else add_up(vector, peers)
            best = max(best, 2 * vector.nbytes / seconds / 1e6)
    finally:
        for peer in peers:
            peer.close()
    return total, {"reduce": best}


def meet(address: str, rank: int, count: int, token: bytes) -> list[socket.socket]:
    """Connections: of the first to all others, of each other to the first. It listens on the address and no other."""
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + PATIENCE
    if rank:
        while True:
            try:
                peer = socket.create_connection((host, int(port)), timeout=PATIENCE)
                peer.sendall(token)
                return [peer]
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
    peers = []
    with socket.create_server((host, int(port))) as server:
        while len(peers) < count - 1:
            server.settimeout(max(0.1, deadline - time.monotonic()))
            peer, _ = server.accept()
            peer.settimeout(PATIENCE)
            if hmac.compare_digest(received(peer, len(token)), token):
                peers.append(peer)
            else:
                peer.close()
    return peers


def added(vector: np.ndarray, root: socket.socket) -> tuple[np.ndarray, float]:
    """The sum of everyone's vectors, and the seconds that this one's and the sum were on their way."""
    received(root, 1)  # our turn
    before = time.perf_counter()
    root.sendall(vector.tobytes())
    received(root, 1)  # it is there
    seconds = time.perf_counter() - before
    first = received(root, 1)
    before = time.perf_counter()
    total = np.frombuffer(first + received(root, vector.nbytes - 1), vector.dtype)
    return total, seconds + time.perf_counter() - before


def add_up(vector: np.ndarray, peers: list[socket.socket]) -> tuple[np.ndarray, float]:
    """The same at the root; its seconds are those with the fastest of the others."""
    total, times = vector, []
    for peer in peers:
        before = time.perf_counter()
        peer.sendall(b"g")
        total = total + np.frombuffer(received(peer, vector.nbytes), vector.dtype)
        peer.sendall(b"a")
        times.append(time.perf_counter() - before)
    for peer in peers:
        peer.sendall(total.tobytes())
    return total, 2 * min(times)


def received(peer: socket.socket, nbytes: int) -> bytes:
    """Exactly so many bytes. Raises OSError where the other end closes."""
    parts, missing = [], nbytes
    while missing:
        part = peer.recv(min(missing, 2**20))
        if not part:
            raise ConnectionError("the other end has closed")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def main(arguments: list[str]) -> int:
    """Measure and print: 0, or 70 where it cannot be measured."""
    try:
        if arguments[0] == "rates":
            found = rates(arguments[1])
        else:
            address, rank, count = arguments[1:]
            _, found = reduce(address, int(rank), int(count), sys.stdin.buffer.readline().strip())
    except OSError as error:
        print(error, file=sys.stderr)
        return 70
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
