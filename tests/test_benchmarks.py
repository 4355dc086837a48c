"""What the benchmarks read and tell, on programs whose traffic is known. How long things take is not tested."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import lepton_jax as lp
from benchmarks import collectives, compress, privacy, record


@pytest.fixture(scope="module")
def mesh():
    return lp.mesh.make("8x1")


def program(mesh, function) -> str:
    """A function of f32[8, 100] split by rows, and of its pieces alone, as a compiled program."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False)
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct((8, 100), jnp.float32)).compile().as_text()


def test_a_sum_over_devices_moves_its_result_once(mesh):
    assert lp.plan.moved(program(mesh, lambda x: jax.lax.psum(x, "data"))) == {"all-reduce": 400}


def test_a_gather_moves_what_it_gathers(mesh):
    assert lp.plan.moved(program(mesh, lambda x: jax.lax.all_gather(x, "data"))) == {"all-gather": 3200}


def test_a_collective_in_a_loop_counts_each_time(mesh):
    def three_times(x):
        return jax.lax.scan(lambda total, _: (jnp.sin(jax.lax.psum(total, "data")), None), x, None, length=3)[0]

    assert lp.plan.moved(program(mesh, three_times)) == {"all-reduce": 1200}


def test_a_loop_of_unknown_length_is_not_guessed(mesh):
    def until_large(x):
        return jax.lax.while_loop(lambda x: jnp.max(x) < 1e6, lambda x: jax.lax.psum(x, "data") + 1, x)

    with pytest.raises(ValueError, match="unknown length"):
        lp.plan.moved(program(mesh, until_large))


def test_a_reduce_scatter_counts_what_it_reduces(mesh):
    function = jax.shard_map(
        lambda x: jax.lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P(None, "data"),
        check_vma=False,
    )
    text = jax.jit(function).lower(jax.ShapeDtypeStruct((8, 80), jnp.float32)).compile().as_text()
    assert lp.plan.moved(text) == {"reduce-scatter": 320}


FUSED = """
%all-reduce-scatter.1 (p: f32[16]) -> f32[2] {
  %a = f32[16] all-reduce(%p), channel_id=1, to_apply=%add
}
%fused_computation.1 (p: f32[2]) -> f32[16] {
  %g = f32[16] all-gather(%p), channel_id=7, dimensions={0}
}
%async_collective_fusion.2 (p: f32[2]) -> f32[16] {
  %g = f32[16] all-gather(%p), channel_id=7, dimensions={0}
}
ENTRY %main (p: f32[16]) -> f32[2] {
  %s = f32[2] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
  %b = f32[16] fusion(%s), kind=kCustom, calls=%fused_computation.1
  %c = f32[16] fusion(%b), kind=kCustom, calls=%async_collective_fusion.2
  %d = f32[4] all-reduce(%c), channel_id=1, to_apply=%add
}
"""


def test_collectives_that_are_fused_count_once():
    """As XLA for TPUs writes a reduce-scatter, and a gather that it hides behind a computation."""
    assert lp.plan.moved(FUSED) == {"reduce-scatter": 64, "all-gather": 64, "all-reduce": 16}


def test_data_parallelism_adds_up_the_gradient_once():
    text, gradient = collectives.compiled("mlp", "8x1", 1)
    found = lp.plan.moved(text)
    assert set(found) == {"all-reduce"}
    assert gradient <= found["all-reduce"] <= 1.05 * gradient


def test_sizes_of_types():
    assert lp.plan.collectives.size("(f32[3,3]{1,0}, bf16[7], pred[], u8[2,0])") == 36 + 14 + 1


def test_the_last_line_is_the_record(capsys):
    record.tell("speed", ["what", "rate"], [["a long name", 1234.5], ["b", 0.12345]], 1.25, 1.0, holds=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["what           rate", "a long name   1,234", "b            0.1235"]
    told = json.loads(lines[-1])
    assert (told["benchmark"], told["value"], told["bar"], told["holds"]) == ("speed", 1.25, 1.0, True)
    assert set(told) == {"benchmark", "value", "bar", "holds", "machine", "commit"}


def test_without_a_bar_nothing_holds_or_fails(capsys):
    record.tell("cost", ["what"], [["a"]], 0.5, None, None)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["value"], told["bar"], told["holds"]) == (0.5, None, None)


def test_compressing_no_run_is_refused(tmp_path):
    with pytest.raises(lp.InputError, match="holds no run"):
        compress.main(runs=str(tmp_path))
    with pytest.raises(lp.InputError, match="unknown recipe 'w9'"):
        compress.main(runs=str(tmp_path), recipes=("w9",))


def test_functions_are_timed_in_turn():
    calls = []
    seconds = record.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert all(values.shape == (3,) and np.all(values >= 0) for values in seconds.values())


def interpreter(directory, body: str) -> str:
    """A program that is started as Opacus's interpreter would be."""
    path = directory / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_peer_answers_for_each_gradient(tmp_path):
    log = tmp_path / "asked"
    with privacy.beside(interpreter(tmp_path, f"while read -r line; do echo $line >> {log}; echo done; done")) as peers:
        for run in peers.values():
            run()
    assert log.read_text().splitlines() == list(privacy.PEERS)


def test_a_peer_that_cannot_run_says_why(tmp_path):
    with privacy.beside(None) as peers:
        assert peers == {}
    failing = interpreter(tmp_path, "echo no such thing >&2")
    with privacy.beside(failing) as peers, pytest.raises(lp.InputError, match="no such thing"):
        peers["opacus"]()
    with pytest.raises(lp.InputError, match="No such file"), privacy.beside(str(tmp_path / "absent")):
        pass
