"""The clipped gradients of benchmarks.privacy in Opacus, one for each line on standard input that names it.

Run by an interpreter that has opacus and torch, not by hand. Nothing of Lepton is here. Each answers with a line when
it is done: "torch, plain", "opacus" (gradients of every example, then clipped) and "opacus, ghost" (fast gradient
clipping).
"""

# pyright: reportMissingImports=false

import sys
import warnings
from collections.abc import Callable
from typing import Any


def network() -> Any:
    """The 28x28 CNN of lp.models.cnn(10)."""
    from torch import nn

    def half(into: int, out: int) -> list[Any]:
        return [nn.Conv2d(into, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]

    dense = [nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*half(1, 32), *half(32, 64), *dense)


def gradients(batch: int) -> dict[str, Callable[[], Any]]:
    """What can be asked for: each leaves the sum of gradients clipped to norm 1, or the plain one."""
    import torch
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    images = torch.rand(batch, 1, 28, 28, device=device)
    labels = torch.randint(10, (batch,), device=device)
    options = {"noise_multiplier": 0.0, "max_grad_norm": 1.0, "expected_batch_size": batch}
    criterion = torch.nn.CrossEntropyLoss()
    plain, each = network().to(device), GradSampleModule(network().to(device))
    ghost = GradSampleModuleFastGradientClipping(network().to(device), max_grad_norm=1.0, use_ghost_clipping=True)
    clipping = DPOptimizer(torch.optim.SGD(each.parameters(), 0.1), **options)
    fast = DPOptimizerFastGradientClipping(torch.optim.SGD(ghost.parameters(), 0.1), **options)
    twice = DPLossFastGradientClipping(ghost, fast, torch.nn.CrossEntropyLoss())

    def of_all() -> None:
        plain.zero_grad(set_to_none=True)
        criterion(plain(images), labels).backward()

    def of_each() -> None:
        clipping.zero_grad()
        criterion(each(images), labels).backward()
        clipping.clip_and_accumulate()

    def of_norms() -> None:
        fast.zero_grad()
        twice(ghost(images), labels).backward()

    return {"torch, plain": of_all, "opacus": of_each, "opacus, ghost": of_norms}


def main() -> None:
    """Answer until standard input ends."""
    import torch

    warnings.filterwarnings("ignore")
    known = gradients(int(sys.argv[1]))
    for line in sys.stdin:
        known[line.strip()]()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print("done", flush=True)


if __name__ == "__main__":
    main()
