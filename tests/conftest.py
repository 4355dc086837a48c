"""Eight simulated devices, warnings as errors, shapes checked at run time: strict from the first test on."""

import gc
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# programs compiled once are there for every worker of pytest and every process that a test starts
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "LEPTON_TEST_CACHE", f"{tempfile.gettempdir()}/lepton-jax-cache-{os.getuid()}"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

import jax
import pytest
from jaxtyping import install_import_hook

import tests.checker  # noqa: F401  the hook finds it by name

_hook = install_import_hook("lepton_jax", "tests.checker.check")
_hook.__enter__()

jax.config.update("jax_numpy_rank_promotion", "raise")
# tracing leaves millions of objects that live on, and to look through them so often takes a fifteenth of the time
gc.set_threshold(50_000, 20, 10)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also run the long forms (minutes to hours)")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        return
    skip = pytest.mark.skip(reason="a long form: scripts/test --long")
    for item in items:
        if "long" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def float64():
    """Run one test in double precision, the proof free of rounding's chaos."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def unoptimized():
    """For what holds whatever LLVM does: programs that compile in half of the time, too slow only for convolutions."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
