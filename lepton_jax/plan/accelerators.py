"""What accelerators can do at most, from their makers' data sheets.

Makers state a link's bandwidth as the sum of both directions; a ring sends one way, so half of it counts. Figures for
tensor cores are dense ones: NVIDIA's sheets print twice as much, "with sparsity". float32 is what JAX multiplies by
default there: TF32 on these GPUs, one pass of bfloat16 on TPUs.
"""

from typing import NamedTuple

from lepton_jax.errors import InputError

GB, TERA = 1e9, 1e12


class Accelerator(NamedTuple):
    """One device: peaks in FLOP/s, memory in bytes, bandwidths in bytes/s in one direction.

    island: how many devices the fast link joins (a server's GPUs, a TPU pod). network: each device's share of what
    joins islands. kind: how JAX's `device_kind` names it. sources: the data sheets.
    """

    name: str
    kind: str
    bfloat16: float
    float32: float
    memory: float
    bandwidth: float
    link: float
    island: int
    network: float
    sources: tuple[str, ...]

    def peak(self, precision: str) -> float:
        """FLOP/s in that precision; float16 is as fast as bfloat16 where there is any."""
        return self.float32 if precision == "float32" else self.bfloat16


NVIDIA = "https://www.nvidia.com/en-us/data-center"
DGX = "https://docs.nvidia.com/dgx"
TPU = "https://cloud.google.com/tpu/docs"

ACCELERATORS = {
    a.name: a
    for a in (
        Accelerator(
            name="a100",  # 80 GB, SXM
            kind="A100",
            bfloat16=312 * TERA,
            float32=156 * TERA,
            memory=80 * GB,
            bandwidth=2039 * GB,
            link=300 * GB,
            island=8,
            network=25 * GB,
            sources=(f"{NVIDIA}/a100/", f"{DGX}/dgxa100-user-guide/introduction-to-dgxa100.html"),
        ),
        Accelerator(
            name="h100",  # SXM
            kind="H100",
            bfloat16=989.5 * TERA,
            float32=494.5 * TERA,
            memory=80 * GB,
            bandwidth=3350 * GB,
            link=450 * GB,
            island=8,
            network=50 * GB,
            sources=(f"{NVIDIA}/h100/", f"{DGX}/dgxh100-user-guide/introduction-to-dgxh100.html"),
        ),
        Accelerator(
            name="h200",  # SXM
            kind="H200",
            bfloat16=989.5 * TERA,
            float32=494.5 * TERA,
            memory=141 * GB,
            bandwidth=4800 * GB,
            link=450 * GB,
            island=8,
            network=50 * GB,
            sources=(f"{NVIDIA}/h200/", f"{DGX}/dgxh100-user-guide/introduction-to-dgxh100.html"),
        ),
        Accelerator(
            name="v5e",
            kind="TPU v5 lite",
            bfloat16=197 * TERA,
            float32=197 * TERA,
            memory=16 * GB,
            bandwidth=819 * GB,
            link=200 * GB,
            island=256,
            network=3.125 * GB,
            sources=(f"{TPU}/v5e",),
        ),
        Accelerator(
            name="v5p",
            kind="TPU v5",
            bfloat16=459 * TERA,
            float32=459 * TERA,
            memory=95 * GB,
            bandwidth=2765 * GB,
            link=600 * GB,
            island=8960,
            network=6.25 * GB,
            sources=(f"{TPU}/v5p",),
        ),
        Accelerator(
            name="v6e",
            kind="TPU v6 lite",
            bfloat16=918 * TERA,
            float32=918 * TERA,
            memory=32 * GB,
            bandwidth=1638 * GB,
            link=400 * GB,
            island=256,
            network=12.5 * GB,
            sources=(f"{TPU}/v6e",),
        ),
    )
}

UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "B": 1}


def of_kind(device_kind: str) -> Accelerator | None:
    """The accelerator that JAX calls so, of several the one that is named most closely; None for any other."""
    found = [a for a in ACCELERATORS.values() if a.kind.lower() in device_kind.lower()]
    return max(found, key=lambda a: len(a.kind), default=None)


def nbytes(text: str) -> float:
    """`"80GiB"` or `"16 GB"` in bytes; a number alone is bytes. Raises InputError for anything else, and for none."""
    number = text.strip().rstrip("BbIiKkMmGgTt")
    unit = text.strip()[len(number) :].upper() or "B"
    try:
        size = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        size = 0.0
    if not 0 < size < float("inf"):
        raise InputError(f"{text!r} is not an amount of memory", "write it with a unit, as in 80GiB or 16GB")
    return size
