"""ResNet-50 in bfloat16: Lepton from raw bytes, with crop, flip and jitter inside the step, against torch without them.

    python -m benchmarks.resnet50                                           on a GPU, with the extra `torch`
    python -m benchmarks.resnet50 --batch-size 4 --image-size 64 --steps 2 --rounds 2       anywhere, to try it

Both train on one device, in turn, from batches that lie there already: torch in channels_last with torch.compile and
bfloat16 autocast. The value is Lepton's images/s over torch's, the median over the rounds. Beside it: achieved FLOP/s
as a share of what the device does in a large matrix product.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import record

BAR = 1.0
CLASSES = 1000
SIDE = 8192  # of the matrices that measure the peak, on an accelerator


def lepton(batch_size: int, image_size: int, steps: int) -> tuple[Callable[[], None], float]:
    """(a segment of training steps, the FLOPs of one as the compiler counts them)."""
    import jax
    import jax.numpy as jnp

    model = lp.models.normalized(lp.models.build("resnet50", CLASSES), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    crop = lp.augment.random_crop(image_size, padding=image_size // 14)
    changed = lp.augment.compose(crop, lp.augment.random_horizontal_flip(), lp.augment.color_jitter(0.4, 0.4, 0.4, 0.1))
    loss = lp.augmented(lp.computed(lp.supervised(model, lp.cross_entropy()), "bfloat16"), changed)
    optimizer = lp.optimizers.build("sgd", 0.1)
    mesh = lp.mesh.make("1x1")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8)
    labels, index = random.integers(0, CLASSES, batch_size, np.int32), np.arange(batch_size, dtype=np.int32)
    batch = lp.mesh.place({"input": images, "label": labels, "index": index}, mesh)
    shape = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.uint8)
    state = lp.step.place(lp.step.initial(model, optimizer, lp.keys.seeded(0), shape), mesh)
    step = lp.step.compile(lp.descend(lp.plain(loss), optimizer), state, batch, mesh)

    def segment() -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    costs = step.cost_analysis() or {}
    return segment, float(costs.get("flops", np.nan))


def torch_network(torch: Any) -> Any:
    """ResNet-50 as torch users have it: He et al. 2015 with the stride on the 3x3 convolution."""
    nn = torch.nn

    def unit(into: int, out: int, size: int, stride: int = 1) -> Any:
        return nn.Sequential(nn.Conv2d(into, out, size, stride, size // 2, bias=False), nn.BatchNorm2d(out))

    class Bottleneck(nn.Module):
        def __init__(self, into: int, features: int, stride: int):
            super().__init__()
            out = 4 * features
            self.one, self.two = unit(into, features, 1), unit(features, features, 3, stride)
            self.three = unit(features, out, 1)
            self.shortcut = unit(into, out, 1, stride) if (into, stride) != (out, 1) else nn.Identity()

        def forward(self, x: Any) -> Any:
            y = self.two(self.one(x).relu()).relu()
            return (self.three(y) + self.shortcut(x)).relu()

    layers, into = [unit(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            layers.append(Bottleneck(into, 64 * 2**stage, 2 if block == 0 and stage else 1))
            into = 256 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, CLASSES))


def torch_peer(batch_size: int, image_size: int, steps: int) -> Callable[[], None]:
    """A segment of torch's training steps."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise lp.InputError(
            "benchmarks.resnet50 measures beside torch, which is not installed",
            "install the extra 'torch': pip install 'lepton-jax[torch]'",
        ) from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = torch_network(torch).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True)
    images = torch.rand(batch_size, 3, image_size, image_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (batch_size,), device=device)

    @torch.compile
    def loss() -> Any:
        with torch.autocast(device, torch.bfloat16):
            return torch.nn.functional.cross_entropy(network(images), labels)

    def segment() -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return segment


def peak(rounds: int) -> float:
    """FLOP/s of a bfloat16 matrix product on this device, the best of the rounds."""
    import jax
    import jax.numpy as jnp

    side = 512 if jax.default_backend() == "cpu" else SIDE
    matrix = jnp.ones((side, side), jnp.bfloat16)
    product = jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda _, y: x @ y / side, x))
    seconds = record.interleaved({"product": lambda: product(matrix).block_until_ready()}, rounds)["product"]
    return 10 * 2 * side**3 / float(seconds.min())


def main(batch_size: int = 256, image_size: int = 224, steps: int = 20, rounds: int = 10) -> None:
    """Train both in turn.

    Args:
        batch_size: Images per step.
        image_size: Their height and width in pixels.
        steps: Steps per segment.
        rounds: Segments of each; the figures are medians over them.
    """
    warnings.filterwarnings("ignore", module="torch")
    theirs = torch_peer(batch_size, image_size, steps)
    ours, flops = lepton(batch_size, image_size, steps)
    seconds = record.interleaved({"lepton": ours, "torch": theirs}, rounds)
    ratio, quartiles = record.spread(seconds["torch"] / seconds["lepton"])
    rates = {name: batch_size * steps / float(np.median(values)) for name, values in seconds.items()}
    achieved, most = flops * steps / float(np.median(seconds["lepton"])), peak(rounds)
    rows = [
        ["lepton, augmented", rates["lepton"], ratio, quartiles, achieved / 1e12, most / 1e12, achieved / most],
        ["torch, compiled", rates["torch"], 1.0, "", "", "", ""],
    ]
    head = ["bfloat16", "images/s", "ratio", "quartiles", "TFLOP/s", "matrix peak", "share"]
    record.tell("resnet50", head, rows, ratio, BAR, ratio >= BAR)


if __name__ == "__main__":
    lp.cli.command(main)
