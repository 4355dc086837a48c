"""Losses: Model -> Loss, and Loss -> Loss through the batch or through the parameters."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Shaped

from lepton_jax import keys
from lepton_jax.augment import batched
from lepton_jax.errors import InputError
from lepton_jax.types import Aux, Batch, Loss, Mean, Model, Params, Stats, Variables, View

T = TypeVar("T")

Criterion = Callable[[Any, Any], Float[Array, " batch"]]
"""(outputs, labels) -> one loss per example."""


def cross_entropy(label_smoothing: float = 0.0) -> Criterion:
    """Softmax cross-entropy of logits [batch, classes] with labels [batch] (integers) or [batch, classes].

    Label smoothing moves that share of each label to the uniform distribution (Szegedy et al. 2015,
    https://arxiv.org/abs/1512.00567).
    """

    def criterion(
        outputs: Float[Array, "batch classes"], labels: Int[Array, " batch"] | Float[Array, "batch classes"]
    ) -> Float[Array, " batch"]:
        targets = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype) if labels.ndim == 1 else labels
        return optax.softmax_cross_entropy(outputs, optax.smooth_labels(targets, label_smoothing))

    return criterion


def squared_error(outputs: Float[Array, "batch *outputs"], labels: Array) -> Float[Array, " batch"]:
    """The squared error of each example, averaged over its outputs."""
    errors = jnp.square(outputs - labels.reshape(outputs.shape))
    return errors.reshape(errors.shape[0], -1).mean(axis=1)


def supervised(model: Model, criterion: Criterion) -> Loss:
    """A model and a criterion as a Loss over batches of "input" and "label".

    Outputs are widened to at least float32 before the criterion. Examples count by the batch's "weight",
    each as 1 where there is none. The model's moved collections return in `stats["model"]`.
    """

    def loss(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        example_keys = keys.per_example(key, batch, "model")
        variables = {"params": params, **stats.get("model", {})}
        outputs, moved = model.apply(variables, batch["input"], True, example_keys)
        losses = criterion(at_least_float32(outputs), batch["label"])
        weight = batch["weight"] if "weight" in batch else jnp.ones_like(losses)
        # where, not *: a padded row may hold anything, NaN included
        total = jnp.sum(jnp.where(weight == 0, 0, losses * weight))
        return Mean(total, jnp.sum(weight)), Aux({**stats, "model": moved} if moved else stats, {})

    return loss


def at_least_float32(outputs: Any) -> Any:
    """Floating outputs in float32 or wider, where sums and exponentials are safe."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), outputs)


def augmented(loss: Loss, augment: Callable[[Any, Array], Array]) -> Loss:
    """The same loss on augmented inputs: `augment(key, input)` per example, inside the trace.

    Each example draws from its own key, by step and global index.
    """

    def augmented_loss(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        inputs = batched(augment)(keys.per_example(key, batch, "augment"), batch["input"])
        return loss(params, stats, {**batch, "input": inputs}, key)

    return augmented_loss


def resident(loss: Loss, inputs: Shaped[np.ndarray, "examples ..."]) -> Loss:
    """The same loss of a batch without "input": that is looked up by "index" among `inputs`, on the device.

    inputs: those of all examples, as `data.Resident` has them. They are a constant of the program, whole on every
    device, so that a step waits for no copy of its batch. To be put outermost. Raises InputError for a batch without
    "index".
    """

    def looked_up(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        if "index" not in batch:
            raise InputError("the batch does not say which examples it has", 'give it "index", as data.Stream does')
        return loss(params, stats, {**batch, "input": jnp.asarray(inputs)[batch["index"]]}, key)

    return looked_up


def mixed(
    arrow: Callable[[Params, Stats, Batch, Any], T], mixing: Callable[[Any, Batch], Batch]
) -> Callable[[Params, Stats, Batch, Any], T]:
    """The same loss on mixed examples: `mixing(key, batch)` inside the trace, as `augment.mixup` and `cutmix` make it.

    `augmented(mixed(loss, mixing), augment)` augments each example and then mixes. Examples are mixed within the batch
    that arrives here: below `accumulate`, a microbatch. A GradFn has the same arguments, so
    `mixed(accumulate(plain(loss), k), mixing)` mixes across the whole batch.
    """

    def mixed_arrow(params: Any, stats: Any, batch: Batch, key: Any) -> T:
        return arrow(params, stats, mixing(key, batch), key)

    return mixed_arrow


def taught(loss: Loss, teacher: tuple[Model, Variables]) -> Loss:
    """The same loss with a teacher's outputs beside the labels: {"label": the batch's own, "teacher": outputs}.

    teacher: (model, variables), such as `(model, weights.load("teacher.safetensors"))`. Its outputs on the batch's
    input are made in evaluation mode, inside the trace, and widened to at least float32; no gradient flows to it.
    Criteria for such labels are in `compress.distill`. What stands outside changes the teacher's input too:
    `augmented(mixed(taught(loss, teacher), mixing), augment)` shows it the student's images, mixed labels and all.
    Hinton et al. 2015, https://arxiv.org/abs/1503.02531.
    """
    model, variables = teacher

    def taught_loss(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        outputs, _ = model.apply(variables, batch["input"], False, None)
        outputs = jax.lax.stop_gradient(at_least_float32(outputs))
        return loss(params, stats, {**batch, "label": {"label": batch["label"], "teacher": outputs}}, key)

    return taught_loss


def through(loss: Loss, view: View) -> Loss:
    """The same loss of viewed parameters: precision, masks, fake quantization and LoRA are views.

    The gradient flows back through the view to the parameters themselves.
    """

    def viewed_loss(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        return loss(view(params), stats, batch, key)

    return viewed_loss
