"""Meshes: what parses, what fits, and how arrays lie."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lepton_jax import mesh
from lepton_jax.errors import InputError
from lepton_jax.types import Rule


def test_what_parses():
    assert mesh.parse("8x1") == {"data": 8, "model": 1}
    assert mesh.parse("data=4,fsdp=2") == {"data": 4, "fsdp": 2}
    assert mesh.size(mesh.parse("data=2,fsdp=2,model=2")) == 8


@pytest.mark.parametrize(
    "text", ["", "8", "8x", "x8", "8x1x1", "0x1", "-1x1", "data", "data=", "data=2,data=2", "dat=2"]
)
def test_what_does_not(text):
    with pytest.raises(InputError, match=f"mesh '{text}'"):
        mesh.parse(text)


def test_too_few_devices_is_an_error_with_a_way_out():
    with pytest.raises(InputError, match=r"started with 8 device\(s\) and 64 are asked for\n"):
        mesh.make("64x1")


def test_axes_are_automatic_so_that_vmap_over_sharded_examples_works():
    over = mesh.make("4x2")
    rows = mesh.place({"x": np.arange(8.0)}, over)["x"]
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda x: x * 2))(rows), 2 * np.arange(8.0))
    assert mesh.batch_shards(over) == 4
    assert mesh.is_simulated(over)
    assert not mesh.is_simulated(mesh.make("1x1"))


STATE = {
    "dense": {"kernel": jnp.zeros((6, 16)), "bias": jnp.zeros(16)},
    "head": {"kernel": jnp.zeros((16, 10))},
    "n": jnp.int32(0),
}
RULES = (Rule("kernel$", (None, "model")), Rule("bias$", ("model",)))


def specs(axes, **options):
    return jax.tree.map(lambda s: s.spec, mesh.shardings(STATE, mesh.make(axes), RULES, **options))


def test_rules_place_what_divides_and_leave_the_rest_whole():
    lie = specs("2x4")
    assert lie["dense"] == {"kernel": P(None, "model"), "bias": P("model")}
    assert lie["head"]["kernel"] == P(None, None)  # 10 classes over 4 devices
    assert lie["n"] == P()


def test_fsdp_takes_the_largest_dimension_that_is_whole():
    lie = specs("fsdp=2,model=4")
    assert lie["dense"] == {"kernel": P("fsdp", "model"), "bias": P("model")}
    assert lie["head"]["kernel"] == P("fsdp", None)
    assert specs("fsdp=8")["dense"]["kernel"] == P(None, "fsdp")
    assert specs("fsdp=8", fsdp=False)["dense"]["kernel"] == P(None, None)


def test_an_optimizers_moments_lie_as_their_weights():
    import optax

    over = mesh.make("2x4")
    params = {"dense": STATE["dense"]}
    lie = mesh.shardings({"params": params, "opt_state": optax.adamw(1e-3).init(params)}, over, RULES)
    moments = lie["opt_state"][0]
    assert moments.mu["dense"] == moments.nu["dense"] == lie["params"]["dense"]


def test_a_rule_that_matches_nothing_is_an_error():
    with pytest.raises(InputError, match="'kernl' matches no leaf"):
        mesh.shardings(STATE, mesh.make("2x4"), (Rule("kernl", ("model",)),))


def test_xla_flags_are_honoured():
    program = "from lepton_jax import mesh; print(mesh.make('4x2').size, dict(mesh.make().shape))"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"} | flags
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.split("\n")[0] == "8 {'data': 8, 'model': 1}", done.stderr
