"""1x1 convolution: the matmul form beside flax's convolution, a dense layer, and PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import geometric_mean
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from benchmarks.bars import bar, ratio
from benchmarks.harness import Case, Suite, compiled_case, difference, measure, normal
from benchmarks.limits import Limits
from jaxnets.convert import dense_to_conv
from jaxnets.kernels import depthwise_conv, pointwise_conv

SHAPES = (
    ((8, 56, 56, 64), 256),
    ((8, 56, 56, 256), 64),
    ((8, 28, 28, 512), 128),
    ((4, 128, 128, 64), 1),
)
SWEEP = [((8, 32, 32, features), features) for features in (8, 32, 128, 512)] + [
    ((1, side, side, 64), 64) for side in (16, 64, 256)
]

WINDOWS, LOOPS = (8, 32, 32, 64), (4, 64, 4096)

QUICK_SHAPES = SHAPES[::3]
QUICK = "1x1 convolution: 2 shapes of 4, 3 rounds of 7; no sweep of sizes, no dense head."


def problem(shape: tuple[int, ...], out: int):
    """Inputs, kernel and bias of a 1x1 convolution."""
    kernel = normal(1, shape[-1], out) * shape[-1] ** -0.5
    return normal(0, *shape), kernel, normal(2, out)


def flax_conv(inputs, kernel, bias):
    """``flax.nnx.Conv(kernel_size=(1, 1))`` with these parameters."""
    conv = nnx.Conv(kernel.shape[0], kernel.shape[1], kernel_size=(1, 1), rngs=nnx.Rngs(0))
    conv.kernel, conv.bias = nnx.Param(kernel[None, None]), nnx.Param(bias)
    return conv(inputs)


def flax_dense(inputs, kernel, bias):
    """``flax.nnx.Linear`` at each position, with JAX's own gradient."""
    dense = nnx.Linear(*kernel.shape, rngs=nnx.Rngs(0))
    dense.kernel, dense.bias = nnx.Param(kernel), nnx.Param(bias)
    return dense(inputs)


def step(layer: Callable) -> Callable:
    """Outputs, and the gradients of half their sum of squares: the outputs are the cotangent.

    So the backward waits for the forward, as in training, and no library does work beside the
    layer's.
    """

    def gradients(*arrays):
        outputs, backward = jax.vjp(layer, *arrays)
        return outputs, *backward(outputs)

    return gradients


def flops_and_bytes(shape, out, *, gradient: bool) -> tuple[float, float]:
    """Operations of the matmuls, and the least bytes: each array read or written once a matmul."""
    positions, features = math.prod(shape[:-1]), shape[-1]
    arrays = 4.0 * (positions * (features + out) + features * out)
    matmuls = 3 if gradient else 1
    return matmuls * 2.0 * positions * features * out, matmuls * arrays


def _torch_cases(arrays, flops) -> tuple[Case, Case]:
    import torch

    inputs, kernel, bias = (torch.from_numpy(np.array(a)) for a in arrays)
    layer: Any = torch.nn.Conv2d(kernel.shape[0], kernel.shape[1], 1)
    layer.to(memory_format=torch.channels_last)
    layer.load_state_dict({"weight": kernel.T[:, :, None, None], "bias": bias})
    inputs = inputs.permute(0, 3, 1, 2)  # a view: channels last in memory

    def forward():
        with torch.no_grad():
            return layer(inputs)

    def gradient():
        layer.zero_grad()
        leaf = inputs.detach().requires_grad_()
        outputs = layer(leaf)
        outputs.backward(outputs.detach())
        grads = leaf.grad, layer.weight.grad[:, :, 0, 0].T, layer.bias.grad
        images = (a.detach().permute(0, 2, 3, 1) for a in (outputs, grads[0]))
        return *images, *grads[1:]

    name = "torch Conv2d, channels last"
    return Case(name, forward, flops), Case(name, gradient, 3 * flops)


LAYERS = {
    "ours": pointwise_conv,
    "flax nnx.Conv": flax_conv,
    "flax nnx.Linear at each position": flax_dense,
}


def _compare(shape, out, limits, rounds, torch: bool, names) -> tuple[list[dict], list, float]:
    """Rows of forward and gradient in one shape, its points of the roofline, and the difference."""
    arrays = problem(shape, out)
    label = f"{list(shape)} to {out}"
    rows, points, largest = [], [], 0.0
    peers = _torch_cases(arrays, flops_and_bytes(shape, out, gradient=False)[0]) if torch else ()
    for gradient in (False, True):
        flops, least = flops_and_bytes(shape, out, gradient=gradient)
        what = "gradient" if gradient else "forward"
        cases = [
            compiled_case(
                name, step(LAYERS[name]) if gradient else LAYERS[name], *arrays, flops=flops
            )
            for name in names
        ]
        if torch:
            cases.append(peers[gradient])
        results = [jax.block_until_ready(case.run()) for case in cases]
        if not gradient:
            results = [[r.permute(0, 2, 3, 1) if hasattr(r, "permute") else r] for r in results]
        largest = max(largest, *(difference(r, results[0]) for r in results[1:]))
        del results
        rows += measure(f"{label}, {what}", cases, rounds, limits)
        seconds = {row["name"]: row["stats"]["median"] for row in rows[-len(cases) :]}
        points.append({
            "shape": label, "what": what, "flops": flops, "bytes": least,
            "ours_s": seconds["ours"], "flax_s": seconds["flax nnx.Conv"],
        })  # fmt: skip
        limits.saw(f"ours, {label}, {what}", seconds["ours"], copied=least)
    return rows, points, largest


def _heads(limits, rounds) -> list[dict]:
    """A head over a flattened map, as a dense layer and as a convolution of the map's size."""
    maps, kernel = normal(0, 64, 7, 7, 256), normal(1, 7 * 7 * 256, 128) / 112
    flops = 3 * 2.0 * 64 * kernel.size

    def dense(maps, kernel):
        return maps.reshape(64, -1) @ kernel

    def convolution(maps, kernel):
        return lax.conv_general_dilated(
            maps, dense_to_conv(kernel, (7, 7)), (1, 1), "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ).reshape(64, -1)  # fmt: skip

    cases = [
        compiled_case(name, step(layer), maps, kernel, flops=flops)
        for name, layer in (
            ("dense over the flattened map", dense),
            ("7x7 convolution", convolution),
        )
    ]
    return measure("a head over [64, 7, 7, 256], gradient", cases, rounds, limits)


def _windows(limits, rounds) -> list[dict]:
    """1x1, separable 3x3 and general 3x3 convolution between the same maps."""
    features = WINDOWS[-1]
    maps, kernel = normal(0, *WINDOWS), normal(1, 3, 3, features, features) / 24
    depthwise = normal(2, 3, 3, features) / 3

    def full(maps, kernel):
        return lax.conv_general_dilated(
            maps, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def separable(implementation):
        def layer(maps, depthwise, kernel):
            mixed = depthwise_conv(maps, depthwise, implementation=implementation)
            return pointwise_conv(mixed, kernel)

        return layer

    arrays = maps, depthwise, kernel[0, 0]
    cases = [
        compiled_case("1x1, ours", step(pointwise_conv), maps, kernel[0, 0]),
        compiled_case("3x3 of each channel, then 1x1, ours", step(separable("shifts")), *arrays),
        compiled_case(
            "the same, XLA's depthwise convolution", step(separable("convolution")), *arrays
        ),
        compiled_case("3x3", step(full), maps, kernel),
    ]
    return measure(f"windows, {list(WINDOWS)} to {features}, gradient", cases, rounds, limits)


def _loops(limits, rounds) -> list[dict]:
    """Channels first, eight times over: in a loop and written out (jax#12868)."""
    inputs, kernel = jnp.ones(LOOPS), jnp.eye(LOOPS[1])
    convolve = partial(pointwise_conv, kernel=kernel, channels_first=True)

    def inside(inputs):
        return lax.fori_loop(0, 8, lambda _, x: convolve(x), inputs)

    def outside(inputs):
        for _ in range(8):
            inputs = convolve(inputs)
        return inputs

    cases = [
        compiled_case("in a fori_loop", inside, inputs),
        compiled_case("written out", outside, inputs),
    ]
    return measure(f"eight channels-first convolutions, {list(LOOPS)}", cases, rounds, limits)


def run(
    limits: Limits, suite: Suite, peers: dict[str, bool]
) -> tuple[list[dict], list[dict], list[dict]]:
    """The rows, the bars, and the points of the roofline."""
    rounds = {"quick": 3, "standard": 7, "full": 15}[suite]
    shapes = QUICK_SHAPES if suite == "quick" else SHAPES
    rows: list[dict] = []
    points: list[dict] = []
    differences = []
    for shape, out in shapes:
        parts = _compare(shape, out, limits, rounds, peers["torch"], tuple(LAYERS))
        rows, points = rows + parts[0], points + parts[1]
        differences.append(parts[2])
    by_name = {(row["group"], row["name"]): row for row in rows}

    def ratios(what, slower, faster):
        groups = [f"{list(shape)} to {out}, {what}" for shape, out in shapes]
        return [ratio(by_name[group, slower], by_name[group, faster]) for group in groups]

    bars = [
        bar(
            "gradient step: flax nnx.Conv / ours, each shape",
            *ratios("gradient", "flax nnx.Conv", "ours"),
            at_least=1.5,
        ),
        bar(
            "forward: flax nnx.Conv / ours, each shape",
            *ratios("forward", "flax nnx.Conv", "ours"),
            at_least=1,
        ),
    ]
    for what in ("gradient", "forward"):
        values = ratios(what, "ours", "torch Conv2d, channels last") if peers["torch"] else []
        mean = [geometric_mean(values)] if values else []
        bars += [
            bar(f"{what}: ours / PyTorch, each shape", *values, at_most=1.1),
            bar(f"{what}: ours / PyTorch, geometric mean", *mean),
        ]
    loops, windows = _loops(limits, rounds), _windows(limits, rounds)
    _, shifts, convolution, _ = windows
    bars += [
        bar("largest relative difference between any two", max(differences)),
        bar("channels first: in a loop / written out", ratio(*loops), at_most=1.1),
        bar(
            "separable 3x3, gradient: XLA's depthwise convolution / ours",
            ratio(convolution, shifts),
        ),
    ]
    rows += windows + loops
    if suite != "quick":
        rows += _heads(limits, rounds)
        for shape, out in SWEEP if suite == "full" else SWEEP[1::2]:
            parts = _compare(shape, out, limits, 5, False, ("ours", "flax nnx.Conv"))
            rows, points = rows + parts[0], points + parts[1]
    return rows, bars, points
