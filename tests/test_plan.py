"""Plans: what is predicted against XLA's own report, rooflines against arithmetic, and choices."""

import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

import lepton_jax as lp
from lepton_jax import mesh, plan
from lepton_jax.compress import programs
from lepton_jax.errors import InputError
from lepton_jax.plan import __main__ as command
from lepton_jax.plan import accelerators, choice, collectives, prediction, rehearsal, table
from lepton_jax.plan.collectives import Collective
from lepton_jax.plan.prediction import Prediction

H100 = plan.ACCELERATORS["h100"]


def work(size=64, optimizer="adamw", **options) -> plan.Work:
    """A small MLP, on batches of `size`."""
    model, optimizer = lp.models.mlp((64, 64), 10), lp.optimizers.build(optimizer, 0.1)
    gradient = lp.plain(lp.supervised(model, lp.cross_entropy()))
    batch = {
        "input": jax.ShapeDtypeStruct((size, 8, 8, 1), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    state = jax.eval_shape(lambda: lp.initial(model, optimizer, jax.random.key(0), batch["input"]))

    def step(microbatches):
        return lp.descend(lp.accumulate(gradient, microbatches), optimizer)

    return plan.Work(step, state, batch, model.rules, **options)


@pytest.fixture(scope="module")
def predictor():
    return plan.Predictor(work())


@pytest.mark.parametrize(
    ("axes", "microbatches"), [("8x1", 1), ("8x1", 4), ("4x2", 1), ("fsdp=8", 1), ("data=2,fsdp=2,model=2", 2)]
)
def test_a_prediction_is_within_a_tenth_of_xlas_report_of_the_whole_program(predictor, axes, microbatches):
    axes = mesh.parse(axes)
    found = predictor.predict(axes, microbatches)
    report = plan.rehearse(predictor.work, axes, predictor.work.size, microbatches)
    assert found.state + found.batch == report.arguments
    assert found.memory == pytest.approx(report.peak, rel=0.1)
    assert sum(found.moved.values()) == pytest.approx(report.moved.total(), rel=0.05)


def test_fsdp_divides_what_rests_by_its_devices():
    whole, split = (prediction.resident(work(), axes).state for axes in ({"data": 8}, {"fsdp": 8}))
    assert split < 0.16 * whole


def test_virtual_shards_are_rehearsed_on_all_devices():
    assert plan.Predictor(work(shards=8)).stand_in({"data": 8, "model": 1}) == {"data": 8, "model": 1}


def test_many_devices_are_rehearsed_on_few():
    found = plan.Predictor(work())
    for axes in ({"data": 64, "model": 1}, {"data": 8, "fsdp": 8}, {"data": 32, "model": 2}, {"fsdp": 64}):
        assert mesh.size(found.stand_in(axes)) <= 10
    assert found.stand_in({"data": 8, "fsdp": 8, "model": 4}) == {"fsdp": 8, "model": 4}
    assert found.stand_in({"data": 8, "fsdp": 2, "model": 2}) == {"data": 2, "fsdp": 2, "model": 2}
    assert found.stand_in({"data": 4, "model": 2}) == {"data": 4, "model": 2}


PROGRAM = """
%body (p: f32[4]) -> f32[4] {
  %r = f32[4]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%add
}

ENTRY %main (a: f32[4]) -> f32[8] {
  %loop = f32[4]{0} while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %g = f32[8]{0} all-gather(%loop), replica_groups=[2,2]<=[4], dimensions={0}
}
"""


def test_bytes_and_starts_are_counted_by_kind_and_group_with_loops():
    assert collectives.by_group(PROGRAM) == {Collective("all-reduce", 2): 48, Collective("all-gather", 2): 32}
    assert plan.moved(PROGRAM) == {"all-reduce": 48, "all-gather": 32}
    assert collectives.launched(PROGRAM) == 4


def test_what_a_scan_multiplies_counts_for_each_of_its_rounds():
    def scanned(state, x):
        return jax.lax.scan(lambda x, _: (x @ state, None), x @ state, None, length=5)[0]

    one = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    traced = jax.make_jaxpr(scanned)(one, one).jaxpr
    assert rehearsal.rounds(traced) == 3  # six products, of which a count that goes through once sees two
    assert rehearsal.rounds(jax.make_jaxpr(jnp.sin)(one).jaxpr, 4) == 4


GROUPS = {
    "replica_groups={{0,1,2},{3,4,5}}, to": 3,
    "replica_groups=[2,4]<=[8], to": 4,
    "replica_groups=mesh['a'=3,'b'=2] {'a'}, use": 3,
    "replica_groups=mesh['a'=3,'b'=2] {'a', 'b'}, use": 6,
    "source_target_pairs={{0,1},{1,0}}": 2,
    "replica_groups={}, to": 0,
}


@pytest.mark.parametrize("line", GROUPS)
def test_the_size_of_a_group_is_read_in_each_of_its_forms(line):
    assert collectives.group(f"%x = f32[3] all-reduce(%y), {line}") == GROUPS[line]


def test_groups_of_a_rehearsal_become_those_of_the_mesh():
    moved = Counter(
        {
            Collective("all-reduce", 3): 1,
            Collective("all-gather", 2): 2,
            Collective("all-reduce", 6): 3,
            Collective("all-reduce", 0): 4,
        }
    )
    found = prediction.regrouped(moved, {"data": 3, "model": 2}, {"data": 32, "model": 2})
    assert found == {
        Collective("all-reduce", 32): 1,
        Collective("all-gather", 2): 2,
        Collective("all-reduce", 64): 7,
    }


def made(axes, microbatches=1, **values) -> Prediction:
    fields = {"state": 0, "batch": 0, "temporaries": 0, "outputs": 0, "flops": 0, "accessed": 0, "launched": 0}
    return Prediction(axes=axes, microbatches=microbatches, moved=Counter(), **{**fields, **values})


def test_the_roofline_is_the_longer_of_multiplying_and_reading_then_sending():
    busy = made({"data": 8, "model": 1}, flops=H100.bfloat16, accessed=2 * H100.bandwidth, launched=100)
    assert busy.seconds(H100, "bfloat16") == pytest.approx(2 + 100 * prediction.LATENCY)
    assert busy.seconds(H100, "float32") == pytest.approx(2.001001, rel=1e-3)


def test_a_ring_is_as_fast_as_its_slowest_link():
    sent = Counter({Collective("all-reduce", 8): 8e9})
    near = made({"data": 8, "model": 1})._replace(moved=sent)
    assert near.seconds(H100, "float32") == pytest.approx(2 * 7 / 8 * 8e9 / H100.link)
    far = made({"data": 8, "model": 8})._replace(moved=sent)  # eight servers, each a tensor-parallel group
    assert far.seconds(H100, "float32") == pytest.approx(2 * 7 / 8 * 8e9 / H100.link)
    wide = made({"data": 16, "model": 1})._replace(moved=Counter({Collective("all-gather", 16): 16e9}))
    assert wide.seconds(H100, "float32") == pytest.approx(15 / 16 * 16e9 / H100.network)


def test_candidates_are_meshes_of_all_devices_that_divide_the_batch():
    found = choice.candidates(work(64), 64)
    assert {"data": 64, "model": 1} in found
    assert {"fsdp": 64} in found
    assert {"data": 8, "fsdp": 8} in found
    assert {"data": 8, "model": 8} in found
    assert all(mesh.size(axes) == 64 for axes in found)
    assert [choice.text(axes) for axes in choice.candidates(work(64), 1)] == ["1x1"]
    assert [choice.text(axes) for axes in choice.candidates(work(64, shards=8), 8)] == ["8x1"]
    assert choice.candidates(work(64)._replace(rules=()), 8) == [{"data": 8, "model": 1}, {"fsdp": 8}]
    with pytest.raises(InputError, match="a batch of 20, in 1 microbatch") as error:
        choice.candidates(work(20), 64)
    assert "a batch of 64" in error.value.remedy


def transformer(size=16, depth=4) -> plan.Work:
    """A small transformer with stacked blocks, on batches of `size`."""
    network = lp.models.stacked.vision_transformer(lp.models.vit.Size(16, depth, 4), 10, patch=4)
    optimizer = lp.optimizers.build("sgd", 0.1)
    gradient = lp.plain(lp.supervised(network, lp.cross_entropy()))
    batch = {
        "input": jax.ShapeDtypeStruct((size, 8, 8, 1), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    state = jax.eval_shape(lambda: lp.initial(network, optimizer, jax.random.key(0), batch["input"]))
    return plan.Work(lambda n: lp.descend(lp.accumulate(gradient, n), optimizer), state, batch, network.rules)


def test_axes_that_a_transformer_splits_are_candidates():
    """Heads and hidden units over 2 and 4, tokens over any, blocks over what divides them."""
    found = {choice.text(axes) for axes in choice.candidates(transformer(), 8)}
    assert {"4x2", "2x4", "data=4,sequence=2", "sequence=8", "data=4,pipe=2", "data=2,pipe=4"} <= found
    assert "pipe=8" not in found
    assert not any("pipe" in axes for axes in choice.candidates(transformer(depth=3), 8))


@pytest.mark.parametrize("axes", ["fsdp=8,pipe=2", "data=2,fsdp=4,sequence=2"])
def test_stages_and_tokens_are_rehearsed_on_few_devices(axes):
    """Sixteen devices by eight: the rehearsal's own report is of another mesh than the prediction is for."""
    axes, work = mesh.parse(axes), transformer(32)
    found, held = plan.Predictor(work).predict(axes, 1), prediction.resident(work, axes)
    assert mesh.size(plan.Predictor(work).stand_in(axes)) == 8
    inner = {"pipe": 2, "fsdp": 4} if "pipe" in axes else {"sequence": 2, "fsdp": 4}
    report = plan.rehearse(work, inner, 16, 1)
    assert (found.state, found.temporaries) == (held.state, report.temporaries)
    assert all(group in (2, 4, 8, 16) for _, group in found.moved)


def test_stages_multiply_in_every_round_of_the_pipeline():
    """Two stages, the batch in eight microbatches of two: nine rounds of two layers, of which a count sees one."""

    def staged(layers, x):
        return lp.models.pipeline.pipelined(lambda own, x, keys: x @ own, layers, x, None)

    layers, x = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 8, 8), (16, 8)))
    with jax.sharding.use_abstract_mesh(mesh.abstract({"pipe": 2})):
        traced = jax.make_jaxpr(staged)(layers, x).jaxpr
    assert programs.multiplications(traced) == 2 * 9 * 2 * 2 * 64  # on both devices
    assert rehearsal.rounds(traced) == 18


def test_a_named_mesh_must_divide_the_batch():
    assert choice.given(work(64), "4x2") == [{"data": 4, "model": 2}]
    with pytest.raises(InputError, match="does not divide over the mesh 8x1 and 16"):
        choice.given(work(64), "8x1", 16)


class Counted(plan.Predictor):
    """Memory by a formula: 100 at rest, shared by fsdp, and 10 for each row of a microbatch."""

    asked = 0

    def predict(self, axes, microbatches):
        self.asked += 1
        rows = self.work.size / prediction.batch_shards(axes) / microbatches
        slow = 1 + axes.get("fsdp", 1) / 100 + microbatches
        return made(
            axes, microbatches, state=100 / axes.get("fsdp", 1), temporaries=10 * rows, flops=slow * H100.float32
        )


def chosen(memory, microbatches=None):
    axes = [{"data": 8, "model": 1}, {"fsdp": 8}]
    return plan.planned(Counted(work(64)), axes, memory / choice.SAFE, H100, "float32", microbatches)


def test_the_fastest_that_fits_is_chosen():
    assert chosen(200).chosen[:2] == ({"data": 8, "model": 1}, 1)
    assert chosen(150).chosen[:2] == ({"fsdp": 8}, 1)  # rather than two microbatches
    assert chosen(60).chosen[:2] == ({"fsdp": 8}, 2)
    assert chosen(24).chosen[:2] == ({"fsdp": 8}, 8)
    assert chosen(60, microbatches=4).chosen[:2] == ({"fsdp": 8}, 4)


def test_numbers_that_cannot_fit_are_not_tried():
    predictor = Counted(work(64))
    plan.planned(predictor, [{"fsdp": 8}], 24 / choice.SAFE, H100, "float32")
    assert predictor.asked == 2  # one microbatch, and the eight that it takes


def test_where_nothing_fits_the_error_names_need_and_room():
    found = chosen(20)
    assert found.chosen is None
    error = choice.too_large(found, 20)
    assert "--mesh fsdp=8 --microbatches 8, needs 22.5 B on each device, and there are 20 B" in error.problem


def test_what_is_planned_is_told(capsys):
    found = chosen(150)
    lines = table.told(found, 150, H100, "float32").splitlines()
    assert len(lines) == 1 + len(found.predictions)
    assert [line.split()[1] for line in lines if line.startswith("->")] == ["fsdp=8"]
    assert "too large" in lines[1]


@pytest.mark.parametrize("name", plan.ACCELERATORS)
def test_accelerators_are_cited_and_found_by_their_kind(name):
    accelerator = plan.ACCELERATORS[name]
    assert accelerator.sources
    assert all(source.startswith("https://") for source in accelerator.sources)
    assert accelerators.of_kind(accelerator.kind) == accelerator
    assert accelerator.bfloat16 >= accelerator.float32 > 1e14


def test_kinds_as_jax_names_them():
    names = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA A100-SXM4-80GB": "a100", "TPU v5 lite": "v5e", "TPU v5p": "v5p"}
    assert {kind: accelerators.of_kind(kind).name for kind in names} == names
    assert accelerators.of_kind("cpu") is None


def test_amounts_of_memory():
    given = {"80GiB": 80 * 2**30, "16 GB": 16e9, "1.5TiB": 1.5 * 2**40, "1000": 1000}
    assert {text: accelerators.nbytes(text) for text in given} == given
    for text in ("80 apples", "", "GiB", "-1GB", "nanGB"):
        with pytest.raises(InputError, match="is not an amount of memory"):
            accelerators.nbytes(text)


REFUSED = {
    "experiments.resnett --devices 8": "there is no module experiments.resnett",
    "experiments.compress --devices 8": "is no experiment: it has no Config",
    "experiments.resnet --devices 0": "--devices 0 is not positive",
    "experiments.resnet --devices 8 --accelerator h1000": "unknown accelerator 'h1000'",
    "experiments.resnet --devices 8 --memory much": "'much' is not an amount of memory",
    "experiments.resnet --devices 8 --input 8x8x1": "--input is given alone",
    "experiments.resnet --devices 8 --preset imagenet": "no --data-dir says where it lies",
    "experiments.resnet --devices 8 --model resnet20 --dephts 3": "unknown argument '--dephts'",
    "experiments.resnet --devices 8 --mesh 4x1": "--mesh 4x1 does not take --devices 8",
    "experiments.resnet": "--devices",
}


@pytest.mark.parametrize("line", REFUSED)
def test_requests_that_cannot_be_planned_are_refused(line):
    with pytest.raises(InputError) as error:
        command.main(line.split())
    assert REFUSED[line] in error.value.problem


def test_images_of_zeros_stand_in_for_data():
    found = lp.data.load("blank:4x6x3:7")
    assert (found.input_shape, len(found.classes), len(found.train)) == ((4, 6, 3), 7, 7)
    assert found.train.gather([0, 6, 6])["label"].tolist() == [0, 6, 6]
    for form in ("4x6:7", "4x6x3", "0x6x3:7", "4x6x3:1"):
        with pytest.raises(InputError, match="is no shape of images"):
            lp.data.load(f"blank:{form}")


def test_the_command_plans_for_devices_that_are_not_there():
    flags = "experiments.resnet --devices 32 --mesh 32x1 --batch 64 --model mlp --accelerator v5e"
    done = subprocess.run(
        [sys.executable, "-m", "lepton_jax.plan", *flags.split()], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "chosen     --mesh 32x1 --microbatches 1"
    assert "v5e, ms" in done.stdout
    assert "checked    compiled whole, XLA reports" in done.stdout
