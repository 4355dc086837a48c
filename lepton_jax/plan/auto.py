"""`--mesh auto` and `--microbatches auto`: chosen for the devices and the memory that a run finds, before its start."""

import dataclasses
import os
import pathlib
import re

import jax

from lepton_jax import agreement, runs, summary
from lepton_jax.config import Config
from lepton_jax.plan import accelerators, making
from lepton_jax.plan.choice import size
from lepton_jax.plan.work import in_microbatches
from lepton_jax.recipe import Recipe

AUTO = making.AUTO


def asked(config: Config) -> bool:
    """Whether the flags leave something to `auto`."""
    return AUTO in (config.mesh, config.microbatches)


def resolved(recipe: Recipe, config: Config) -> tuple[Recipe, Config]:
    """The recipe and its flags with what is left to `auto` chosen, and said.

    A run that goes on keeps its microbatches, which are part of what it computes. The first of several processes has
    the plan made for all of them, by the least memory that one of them has. Raises InputError where nothing fits.
    """
    memory = agreement.least(room())
    accelerator = accelerators.of_kind(jax.devices()[0].device_kind) or accelerators.ACCELERATORS["h100"]

    def choose() -> making.Choice:
        about = jax.device_count(), fixed(config), memory, accelerator.name
        return making.here(recipe, config, *about) if jax.process_count() == 1 else making.apart(config, *about)

    found = making.Choice(*agreement.shared(choose))
    if agreement.is_first():
        needed = f"{size(found.memory)} of {size(memory)} on each device"
        said = f"--mesh {found.mesh} --microbatches {found.microbatches}: {needed}, as predicted"
        print(*summary.labelled("plan", said), sep="\n", flush=True)
    settled = dataclasses.replace(config, mesh=found.mesh, microbatches=found.microbatches)
    return in_microbatches(recipe, config, found.microbatches), settled


def fixed(config: Config) -> int | None:
    """The microbatches where they are given, by a flag or by the run that goes on."""
    if config.microbatches != AUTO:
        return config.microbatches
    record = pathlib.Path(config.run or "") / "config.json"
    return runs.recorded(record)["config"].get("microbatches") if config.run and record.is_file() else None


def room() -> float:
    """Bytes that a run may use on each device: of an accelerator what it has left, of a CPU a share of what is free."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return available() / jax.local_device_count()


def available() -> float:
    """Bytes of this machine's memory that are free, or soon can be; all of it where it does not say."""
    info = pathlib.Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", info.read_text()) if info.exists() else None
    return int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
