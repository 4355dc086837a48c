"""Criteria for a student beside its teacher, as `losses.taught` brings them together.

Labels are {"label": the batch's own, "teacher": the teacher's outputs}. `beside` adds hints of inner activations, which
student and teacher show as `exposure.exposed`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lepton_jax import keys as keys_
from lepton_jax.errors import InputError
from lepton_jax.losses import Criterion, cross_entropy
from lepton_jax.types import Key, Keys, Model, Variables

Logits = Float[Array, "batch classes"]
PerExample = Float[Array, " batch"]
Pairs = Sequence[tuple[int, int]]
"""(student's block, teacher's block), counted from 0, or from -1 backward."""
Hint = Callable[[Sequence[Array], Sequence[Array]], PerExample]
"""(student's blocks, teacher's blocks) -> one loss per example."""


def hinton(temperature: float = 4.0, weight: float = 0.9, criterion: Criterion | None = None) -> Criterion:
    """(1 - weight) * criterion(outputs, label) + weight * temperature^2 * KL(teacher || student), both softened.

    Logits [batch, classes] are divided by the temperature; its square keeps the gradient's size. criterion:
    `cross_entropy()` where none is given. Hinton et al. 2015, https://arxiv.org/abs/1503.02531. Raises InputError for
    a temperature that is not positive, a weight outside [0, 1], and a teacher of other classes.
    """
    _require_temperature(temperature)
    if not 0 <= weight <= 1:
        raise InputError(f"the teacher's weight {weight} is outside [0, 1]", "give one such as 0.9")
    own = cross_entropy() if criterion is None else criterion

    def distilled(outputs: Logits, labels: Any) -> PerExample:
        teacher = _same_classes(outputs, labels["teacher"])
        softened = divergence(teacher / temperature, outputs / temperature) * temperature**2
        return (1 - weight) * own(outputs, labels["label"]) + weight * softened

    return distilled


def decoupled(
    alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, criterion: Criterion | None = None
) -> Criterion:
    """criterion + temperature^2 * (alpha * target + beta * non-target): DKD, which weighs two parts of KL apart.

    target: the divergence of (true class, all others); non-target: that among the others alone. Of a label that is a
    distribution the largest class is the true one. Zhao et al. 2022, https://arxiv.org/abs/2203.08679. Raises
    InputError for a temperature that is not positive, a negative weight, and a teacher of other classes.
    """
    _require_temperature(temperature)
    if min(alpha, beta) < 0:
        raise InputError(f"alpha {alpha} and beta {beta} are not both 0 or above", "give such as 1 and 8")
    own = cross_entropy() if criterion is None else criterion

    def distilled(outputs: Logits, labels: Any) -> PerExample:
        teacher, label = _same_classes(outputs, labels["teacher"]), labels["label"]
        classes = label if label.ndim == 1 else jnp.argmax(label, axis=-1)
        others = classes.reshape(-1, 1) != jnp.arange(outputs.shape[-1]).reshape(1, -1)
        both = [_parted(logits / temperature, others) for logits in (teacher, outputs)]
        target, other = (divergence(*pair) for pair in zip(*both, strict=True))
        return own(outputs, label) + temperature**2 * (alpha * target + beta * other)

    return distilled


def beside(criterion: Criterion, *hints: Hint) -> Criterion:
    """criterion of the outputs alone + hints of the blocks: `beside(hinton(), fitnet([(1, 3)]), attention([(2, 5)]))`.

    Outputs of student and teacher are {"output", "blocks"}, as `exposure.exposed` makes them. Raises InputError for
    others.
    """

    def distilled(outputs: Any, labels: Any) -> PerExample:
        own, teacher = _of_output(outputs, labels)
        blocks, others = (
            _blocks(each, whose) for each, whose in ((outputs, "student"), (labels["teacher"], "teacher"))
        )
        return sum((hint(blocks, others) for hint in hints), criterion(own, teacher))

    return distilled


def fitnet(pairs: Pairs, weight: float = 1.0) -> Hint:
    """weight * mean squared error between the blocks of each pair, added up over pairs.

    Blocks of other widths are first brought to the teacher's by a trained map: `hinted`. Romero et al. 2014,
    https://arxiv.org/abs/1412.6550. Raises InputError for no pair, a negative weight, and blocks that are not there or
    of two shapes.
    """
    return _hint(pairs, weight, lambda block: block)


def attention(pairs: Pairs, weight: float = 1000.0) -> Hint:
    """weight * mean squared error between the attention maps of each pair, added up over pairs.

    See `attention_map`; widths may differ. Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1612.03928, with the
    mean over positions of their code. Raises InputError for no pair, a negative weight, and blocks that are not there
    or of other positions.
    """
    return _hint(pairs, weight, attention_map)


def attention_map(block: Array) -> Float[Array, "batch positions"]:
    """Where a block [batch, positions ..., channels] is strong: its mean square over channels, of norm 1 or 0.

    Raises InputError for a block without positions.
    """
    if block.ndim < 3:
        raise InputError(f"a block of shape {list(block.shape)} has no positions", "choose images or tokens")
    strength = jnp.mean(jnp.square(block), axis=-1).reshape(len(block), -1)
    square = jnp.sum(jnp.square(strength), axis=1, keepdims=True)
    # a block that is zero throughout has no direction, and no gradient; torch's normalize has the same bound
    return strength * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def hinted(model: Model, widths: Mapping[int, int]) -> Model:
    """An exposed model whose blocks {number: the teacher's width} go through a linear map of their channels, trained.

    Its params are {"model": the model's own, "hint": {number: [width, teacher's width]}}, all other variables the
    model's; `unhinted` takes the maps away again. The map is drawn with variance 1 / width. Raises InputError for a
    block that is not there.
    """

    def init(key: Key, inputs: Any) -> Variables:
        variables = dict(model.init(key, inputs))
        shapes, _ = jax.eval_shape(lambda variables: model.apply(variables, inputs, False, None), variables)
        maps = {}
        for number, width in widths.items():
            own = _block(shapes["blocks"], number).shape[-1]
            drawn = jax.random.normal(keys_.named(key, f"hint/{number}"), (own, width), jnp.float32)
            maps[str(number)] = drawn / own**0.5
        return {**variables, "params": {"model": variables["params"], "hint": maps}}

    def apply(variables: Variables, inputs: Any, train: bool, keys: Keys | None) -> tuple[Any, dict[str, Any]]:
        outputs, moved = model.apply(unhinted(variables), inputs, train, keys)
        blocks = list(outputs["blocks"])
        for number in widths:
            block = _block(blocks, number)
            kernel = variables["params"]["hint"][str(number)]
            blocks[number] = jnp.einsum("...i,io->...o", block, kernel.astype(block.dtype))
        return {**outputs, "blocks": blocks}, moved

    return Model(init, apply, model.rules)


def unhinted(variables: Variables) -> Variables:
    """The variables of the model that `hinted` was given."""
    return {**variables, "params": variables["params"]["model"]}


def divergence(teacher: Logits, student: Logits) -> PerExample:
    """KL(softmax(teacher) || softmax(student)) of each example."""
    of_teacher, of_student = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    return jnp.sum(jnp.exp(of_teacher) * (of_teacher - of_student), axis=-1)


def _parted(logits: Logits, others: Bool[Array, "batch classes"]) -> tuple[Array, Array]:
    """Logits of (true class, all others) [batch, 2], and of the others alone, with the true class out of the way."""
    apart = jnp.where(others, logits, jnp.finfo(logits.dtype).min / 2)
    true = jnp.sum(jnp.where(others, 0, logits), axis=-1)
    return jnp.stack([true, jax.nn.logsumexp(apart, axis=-1)], axis=-1), apart


def _hint(pairs: Pairs, weight: float, seen: Callable[[Array], Array]) -> Hint:
    """The mean squared error between what is seen of the blocks of each pair."""
    if weight < 0 or not pairs:
        raise InputError(f"{len(pairs)} pairs of blocks of weight {weight} teach nothing", "give a pair and 0 or more")

    def distance(student: Array, teacher: Array) -> PerExample:
        if student.shape != teacher.shape:
            problem = f"a student's block of {list(student.shape)} beside a teacher's of {list(teacher.shape)}"
            raise InputError(problem, "pair blocks of one resolution, and bring widths together by hinted")
        return jnp.mean(jnp.square(student - teacher).reshape(len(student), -1), axis=1)

    def hint(blocks: Sequence[Array], others: Sequence[Array]) -> PerExample:
        found = [distance(seen(_block(blocks, own)), seen(_block(others, other))) for own, other in pairs]
        return weight * sum(found[1:], found[0])

    return hint


def _of_output(outputs: Any, labels: Any) -> tuple[Any, Any]:
    """Outputs and labels without inner activations."""
    plain = [each["output"] if isinstance(each, Mapping) else each for each in (outputs, labels["teacher"])]
    return plain[0], {**labels, "teacher": plain[1]}


def _blocks(outputs: Any, whose: str) -> Sequence[Any]:
    if not isinstance(outputs, Mapping) or "blocks" not in outputs:
        raise InputError(f"the {whose}'s outputs have no blocks", f"give exposed({whose}) in its place")
    return outputs["blocks"]


def _block(blocks: Sequence[Any], number: int) -> Any:
    if not -len(blocks) <= number < len(blocks):
        raise InputError(f"there is no block {number} among {len(blocks)}", f"they are 0 to {len(blocks) - 1}")
    return blocks[number]


def _same_classes(outputs: Any, teacher: Any) -> Any:
    """The teacher's logits, where they are of the student's classes."""
    if outputs.shape != teacher.shape:
        problem = f"the teacher's outputs are {list(teacher.shape)} and the student's {list(outputs.shape)}"
        raise InputError(problem, "a teacher must have been trained on the same classes")
    return teacher


def _require_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise InputError(f"the temperature {temperature} is not positive", "give one such as 4")
