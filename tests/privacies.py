"""Models, batches and the float64 reference for the tests of privacy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import lepton_jax as lp
from lepton_jax import models, tree

CLASSES = 4


class LSTM(nn.Module):
    """Tokens to logits, by the last of an LSTM's states."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        y = nn.Embed(11, 5, name="embed")(x)
        y = nn.RNN(nn.OptimizedLSTMCell(6, param_dtype=y.dtype), name="lstm")(y)
        return nn.Dense(CLASSES, name="head")(y[:, -1])


class GroupNormed(nn.Module):
    """A residual block with group norm and a strided convolution without padding."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.GroupNorm(2, name="norm1")(nn.Conv(4, (3, 3), use_bias=False, name="conv1")(x))
        y = nn.GroupNorm(2, name="norm2")(nn.Conv(4, (3, 3), name="conv2")(nn.gelu(x)))
        y = nn.gelu(nn.Conv(6, (3, 3), strides=2, padding="VALID", name="conv3")(nn.gelu(x + y)))
        return nn.Dense(CLASSES, name="head")(jnp.mean(y, (1, 2)))


class Transformer(nn.Module):
    """Tokens to logits, by one block with attention, whose embedding is used again for the outputs."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        embed = nn.Embed(11, 8, name="embed")
        y = embed(x) + self.param("positions", nn.initializers.normal(0.1), (1, x.shape[1], 8))
        y = y + nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm(name="norm1")(y))
        y = y + nn.Dense(8, name="dense2")(nn.gelu(nn.Dense(12, name="dense1")(nn.LayerNorm(name="norm2")(y))))
        return embed.attend(jnp.mean(y, 1))[:, :CLASSES]


MODELS = {
    "mlp": lambda: models.mlp((8,), CLASSES, activation=jax.nn.gelu),
    "cnn": lambda: models.cnn(CLASSES, widths=(4, 6), hidden=8),
    "resnet": lambda: models.linen(GroupNormed()),
    "lstm": lambda: models.linen(LSTM()),
    "transformer": lambda: models.linen(Transformer()),
}


def batch(name: str, size: int = 8, seed: int = 0) -> dict[str, Any]:
    """Images, or tokens with some that occur twice."""
    random = np.random.default_rng(seed)
    tokens = name in ("lstm", "transformer")
    inputs = random.integers(0, 11, (size, 7)) if tokens else random.random((size, 8, 8, 2), np.float32)
    labels = random.integers(0, CLASSES, size)
    return {"input": inputs, "label": labels, "index": np.arange(size) + 3}


def prepared(name: str, size: int = 8) -> tuple[Any, Any, dict[str, Any]]:
    """(loss, float32 parameters, batch)."""
    model, rows = MODELS[name](), batch(name, size)
    params = model.init(jax.random.key(1), rows["input"])["params"]
    scale = 3 / len(tree.paths(params)) ** 0.5  # so that norms lie around 1, some above and some below
    return lp.supervised(model, lp.cross_entropy()), tree.scale(params, scale), rows


def alone(loss: Any, params: Any, rows: dict[str, Any], key: Any) -> list[Any]:
    """Each example's gradient, computed by itself in float64, as numpy."""
    with jax.enable_x64(True):
        wide, found = tree.cast(jax.tree.map(np.asarray, params), np.float64), []
        gradient = jax.jit(jax.grad(lambda p, row: loss(p, {}, row, key)[0].total))
        for number in range(len(rows["index"])):
            row = {name: column[number : number + 1] for name, column in rows.items()}
            found.append(jax.tree.map(np.asarray, gradient(wide, tree.cast(row, np.float64))))
    return found


def norms(gradients: list[Any]) -> np.ndarray:
    """The norm of each."""
    return np.array([np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(g))) for g in gradients])


def summed(gradients: list[Any], factors: np.ndarray) -> Any:
    """Their sum, each times its factor."""
    return jax.tree.map(lambda *leaves: sum(f * x for f, x in zip(factors, leaves, strict=True)), *gradients)
