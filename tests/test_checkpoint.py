"""Checkpoints that can be trusted: what is not as it was written is noticed, set aside, and gone back behind."""

import importlib.util
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lepton_jax as lp
from lepton_jax import checkpoint, digests, mesh, step
from lepton_jax.errors import DamagedError

DTYPES = ("float32", "float16", "bfloat16", "int8", "uint16", "int32", "bool", "float8_e4m3fn")


def state(number: int = 1, dtype: Any = np.float32) -> Any:
    """A small state, different at every step."""
    rng = np.random.default_rng(number)
    params = {"dense": {"kernel": rng.normal(size=(8, 4)).astype(dtype), "bias": rng.normal(size=4).astype(dtype)}}
    moments = jax.tree.map(lambda x: x * 2, params)
    key = jax.random.key(number)
    return lp.types.TrainState(jnp.int32(number), params, {"model": {"mean": np.ones(4, np.float32)}}, moments, key)


def saved(directory: pathlib.Path, numbers: tuple[int, ...] = (1, 2)) -> pathlib.Path:
    """Checkpoints of these steps."""
    over = mesh.make("1x1")
    with checkpoint.Checkpoints(directory) as checkpoints:
        for number in numbers:
            checkpoints.save(step.place(state(number), over), {"seconds": number}, {"accuracy": 0.5 + number / 100})
    return directory


def restored(directory: pathlib.Path, axes: str = "1x1") -> tuple[Any, Any, dict[int, str]]:
    """(state, info, what was set aside)."""
    with checkpoint.Checkpoints(directory) as checkpoints:
        found, info = checkpoints.restore(state(), mesh.make(axes))
        return found, info, checkpoints.aside


def same(found: Any, number: int) -> None:
    expected = state(number)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = (digests.data(x) for x in (a, b))
        np.testing.assert_array_equal(a, b)


# Digests


def reference(leaf: np.ndarray) -> str:
    """The same sums in whole numbers of any size, element by element."""

    def mixed(x: int) -> int:
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = ((x ^ (x >> shift)) * factor) % 2**32
        return x ^ (x >> 16)

    width = leaf.dtype.itemsize
    words = np.ascontiguousarray(leaf).view(f"u{min(width, 4)}").ravel().tolist()

    def total(seed: int) -> int:
        return sum(mixed(word ^ mixed((place + seed) % 2**32)) for place, word in enumerate(words)) % 2**32

    return "".join(f"{total(seed):08x}" for seed in digests.SEEDS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (3, 1, 4), (0, 2)])
def test_a_digest_is_the_sum_of_its_definition(dtype, shape):
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, shape)
    leaf = values.astype(getattr(ml_dtypes, dtype, dtype))
    found = digests.digests({"leaf": leaf})["leaf"]
    assert found == f"{dtype}[{','.join(map(str, shape))}] {reference(np.asarray(leaf))}"


def test_a_digest_of_float64_sees_both_words(float64):
    leaf = np.random.default_rng(0).normal(size=(3, 5))
    assert digests.digests([leaf])["0"].split()[1] == reference(leaf)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 8 * 96 - 1), st.sampled_from(["float32", "int8", "bfloat16"]))
def test_no_single_bit_can_change_unseen(bit, dtype):
    leaf = np.random.default_rng(1).integers(-99, 99, (2, 3, 4)).astype(getattr(ml_dtypes, dtype, dtype))
    flat = leaf.view(np.uint8).ravel().copy()
    flat[bit // 8 % flat.size] ^= np.uint8(1 << bit % 8)
    other = flat.view(leaf.dtype).reshape(leaf.shape)
    assert digests.digests([leaf]) != digests.digests([other])


def test_swapped_elements_and_shapes_are_seen():
    leaf = np.arange(6, dtype=np.float32)
    swapped = leaf[[1, 0, 2, 3, 4, 5]]
    assert len({tuple(digests.digests([x]).values()) for x in (leaf, swapped, leaf.reshape(2, 3))}) == 3


@pytest.mark.parametrize("axes", ["8x1", "2x4", "data=2,fsdp=4"])
def test_digests_are_the_same_on_every_mesh(axes):
    tree = {"kernel": np.random.default_rng(2).normal(size=(8, 16)).astype(np.float32), "scale": np.float32(3)}
    over = mesh.make(axes)
    laid = jax.device_put(tree, mesh.shardings(tree, over, (lp.types.Rule("kernel", (None, "model")),)))
    assert digests.digests(laid) == digests.digests(tree)


# Restoring


def test_what_was_saved_comes_back_with_its_record(tmp_path):
    found, info, aside = restored(saved(tmp_path), "2x4")
    same(found, 2)
    assert (info, aside) == ({"seconds": 2}, {})


RULES = (lp.types.Rule("kernel", (None, "model")),)


@pytest.mark.parametrize("saved_on", ["8x1", "4x2", "2x4", "1x8"])
def test_what_was_saved_on_one_mesh_is_the_same_bits_on_every_other(saved_on, tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(step.place(state(), mesh.make(saved_on), RULES), {}, {})
    for axes in ("8x1", "4x2", "2x4", "1x8", "4x1", "2x2", "2x1", "1x1", "data=2,fsdp=2,model=2"):
        over = mesh.make(axes)
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            found, _ = checkpoints.restore(state(), over, RULES)
        same(found, 1)
        kernel = found.params["dense"]["kernel"]
        assert kernel.sharding == mesh.shardings(state(), over, RULES).params["dense"]["kernel"]


DAMAGES = ("truncated", "emptied", "deleted", "flipped")


def files(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())


def damage(path: pathlib.Path, how: str, place: float) -> None:
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[: int(len(content) * place)])
    elif content:
        bit = int(len(content) * 8 * place)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)


def places(how: str, long: bool) -> list[float]:
    if how in ("deleted", "emptied"):
        return [0.0]
    return [(n + 0.5) / (20 if long else 2) for n in range(20 if long else 2)]


def test_every_file_damaged_in_every_way_is_noticed_or_harmless(tmp_path, request):
    """The newest step comes back as it was, or the one before it does; never anything else."""
    long = request.config.getoption("--long")
    whole = saved(tmp_path / "whole")
    noticed = dict.fromkeys(DAMAGES, 0)
    for number, path in enumerate(files(whole / "2")):
        for how in DAMAGES:
            for place in places(how, long):
                broken = tmp_path / f"{number}-{how}-{place}"
                shutil.copytree(whole, broken)
                damage(broken / "2" / path, how, place)
                found, info, aside = restored(broken)
                assert info["seconds"] == int(found.step)
                same(found, int(found.step))
                assert bool(aside) == (int(found.step) == 1), (path, how)
                if path.name != "files.json":  # one that names another file wrongly is still one that is not believed
                    assert all(str(broken / "2" / path) in problem for problem in aside.values()), aside
                noticed[how] += bool(aside)
                shutil.rmtree(broken)
    assert min(noticed.values()) > 0, noticed


def test_a_flipped_bit_of_a_weight_is_named_set_aside_and_gone_back_behind(tmp_path, monkeypatch):
    """As a bad memory would flip it: behind the file's own checksums."""
    directory, original = saved(tmp_path), digests.digests

    def flipped(tree: Any) -> dict[str, str]:
        if int(tree.step) == 2:
            kernel = np.array(tree.params["dense"]["kernel"])
            kernel.view(np.uint32)[3, 2] ^= 1
            tree = tree._replace(params={"dense": {**tree.params["dense"], "kernel": kernel}})
        return original(tree)

    monkeypatch.setattr(digests, "digests", flipped)
    (directory / "2" / "files.json").unlink()
    found, _, aside = restored(directory)
    same(found, 1)
    assert "params/dense/kernel" in aside[2]
    assert "1 of " in aside[2]
    assert (directory / "quarantine" / "2").is_dir()
    assert not (directory / "2").exists()


def test_without_a_good_step_the_error_says_so_and_keeps_everything(tmp_path):
    directory = saved(tmp_path)
    for number in (1, 2):
        for path in files(directory / str(number)):
            damage(directory / str(number) / path, "truncated", 0.5)
    with pytest.raises(DamagedError) as caught:
        restored(directory)
    assert caught.value.code == 65
    assert str(directory) in caught.value.problem
    assert sorted(path.name for path in (directory / "quarantine").iterdir()) == ["1", "2"]


def test_a_second_casualty_of_the_same_step_keeps_the_first(tmp_path):
    directory = saved(tmp_path)
    for _ in range(2):
        damage(directory / "2" / "info" / "metadata", "emptied", 0)
        restored(directory)
        with checkpoint.Checkpoints(directory) as checkpoints:
            checkpoints.save(step.place(state(2), mesh.make("1x1")), {"seconds": 2}, {})
    assert sorted(path.name for path in (directory / "quarantine").iterdir()) == ["2", "2-2"]


def test_a_record_that_was_rewritten_is_not_believed(tmp_path):
    directory = saved(tmp_path)
    record = directory / "2" / "info" / "metadata"
    content = json.loads(record.read_text())
    content["metrics"]["accuracy"] = 0.99
    record.write_text(json.dumps(content))
    with checkpoint.Checkpoints(directory) as checkpoints:
        assert checkpoints.best() == 1
    assert "altered" in restored(directory)[2][2]


def test_a_step_that_was_killed_before_it_was_sealed_is_still_verified(tmp_path):
    directory = saved(tmp_path)
    record = directory / "2" / "info" / "metadata"
    (directory / "2" / "files.json").unlink()
    same(restored(directory)[0], 2)
    record.write_text(record.read_text().replace('"seconds": 2', '"seconds": 3'))
    (directory / "2" / "files.json").unlink()
    assert "checksum" in restored(directory)[2][2]


@pytest.mark.parametrize(
    ("like", "named"),
    [
        (lambda: state(1, ml_dtypes.bfloat16), "opt_state/dense/bias as float32[4]"),
        (lambda: state()._replace(stats={}), "no stats/model/mean"),
    ],
)
def test_another_model_or_type_is_refused_by_name_and_nothing_is_moved(like, named, tmp_path):
    """A float32 checkpoint is not cast to bfloat16 without a word."""
    directory = saved(tmp_path)
    with checkpoint.Checkpoints(directory) as checkpoints, pytest.raises(lp.InputError) as caught:
        checkpoints.restore(like(), mesh.make("1x1"))
    assert named in caught.value.problem
    assert caught.value.code == 2
    assert (directory / "2").is_dir()


@pytest.mark.parametrize(
    ("place", "words"),
    [("gs://bucket/run", "needs gcsfs"), ("s3://bucket/run", "not s3://"), ("ftp://x", "not ftp://")],
)
def test_a_store_without_its_library_or_unknown_is_refused(place, words):
    if words.startswith("needs") and importlib.util.find_spec(words.split()[1]):
        pytest.skip(f"{words.split()[1]} is installed")
    with pytest.raises(lp.InputError, match=words):
        checkpoint.Checkpoints(place)


def test_steps_after_one_can_be_forgotten(tmp_path):
    directory = saved(tmp_path, (1, 2, 3))
    with checkpoint.Checkpoints(directory) as checkpoints:
        checkpoints.forget(after=2)
        assert (checkpoints.latest(), checkpoints.committed()) == (2, 2)
    same(restored(directory)[0], 2)
