"""`--mesh auto` and `--microbatches auto`: chosen for the devices and the memory that a run finds, before its start."""

import dataclasses
import os
import pathlib
import re

import jax

from lepton_jax import runs, summary
from lepton_jax.config import Config
from lepton_jax.errors import InputError
from lepton_jax.plan import accelerators, choice
from lepton_jax.plan.prediction import Predictor
from lepton_jax.plan.work import in_microbatches, of_recipe
from lepton_jax.recipe import Recipe

AUTO = "auto"


def asked(config: Config) -> bool:
    """Whether the flags leave something to `auto`."""
    return AUTO in (config.mesh, config.microbatches)


def resolved(recipe: Recipe, config: Config) -> tuple[Recipe, Config]:
    """The recipe and its flags with what is left to `auto` chosen, and said.

    A run that goes on keeps its microbatches, which are part of what it computes. Raises InputError where nothing
    fits, and for a run of several processes.
    """
    if jax.process_count() > 1:
        problem = f"auto plans for one process, and this run has {jax.process_count()}"
        raise InputError(problem, "give --mesh and --microbatches as python -m lepton_jax.plan finds them")
    work, devices, number, memory = of_recipe(recipe, config), jax.device_count(), fixed(config), room()
    if config.mesh == AUTO:
        axes = choice.candidates(work, devices, number or 1)
    else:
        axes = choice.given(work, config.mesh or f"{devices}x1", number or 1)
    accelerator = accelerators.of_kind(jax.devices()[0].device_kind) or accelerators.ACCELERATORS["h100"]
    plan = choice.planned(Predictor(work), axes, memory, accelerator, config.precision, number)
    if plan.chosen is None:
        raise choice.too_large(plan, memory)
    mesh, number = choice.text(plan.chosen.axes), plan.chosen.microbatches
    needed = f"{choice.size(plan.chosen.memory)} of {choice.size(memory)} on each device"
    said = f"--mesh {mesh} --microbatches {number}: {needed}, as predicted"
    print(*summary.labelled("plan", said), sep="\n", flush=True)
    chosen = dataclasses.replace(config, mesh=mesh, microbatches=number)
    return in_microbatches(recipe, config, number), chosen


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
