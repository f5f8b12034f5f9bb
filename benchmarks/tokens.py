"""Log-probabilities, entropy and divergences of each token, ours against whole logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks import exact
from benchmarks.bars import bar, ratio
from benchmarks.harness import Suite, compiled_case, difference, measure, normal
from benchmarks.limits import Limits
from jaxnets.kernels import Head, linear_divergence, linear_log_probs

SIZES = 2048, 256, 16_384  # tokens, features, classes: a GRPO batch of 32 sequences of 64 tokens
TEACHER_FEATURES = 512
BONUS, TEMPERATURE = 0.01, 2.0
QUICK = "Log-probabilities and divergence: 1 round of 5."


def naive_log_probs(hidden, weight, bias, labels, advantages):
    """A policy gradient with an entropy bonus, as one writes it today: all logits."""
    log_p = jax.nn.log_softmax(hidden @ weight.T + bias)
    own = jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0]
    entropy = -(jnp.exp(log_p) * log_p).sum(1)
    return -(advantages * own + BONUS * entropy).mean()


def our_log_probs(hidden, weight, bias, labels, advantages):
    """The same loss, tiled."""
    found = linear_log_probs(hidden, weight, labels, bias=bias)
    return -(advantages * found.log_prob + BONUS * found.entropy).mean()


def naive_divergence(hidden, weight, bias, teacher_hidden, teacher_weight):
    """Forward KL from a teacher with a temperature (Hinton et al. 2015): both heads' logits."""
    log_q = jax.nn.log_softmax((hidden @ weight.T + bias) / TEMPERATURE)
    teacher = lax.stop_gradient(teacher_hidden @ teacher_weight.T)
    log_p = jax.nn.log_softmax(teacher / TEMPERATURE)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(1).mean()


def our_divergence(hidden, weight, bias, teacher_hidden, teacher_weight):
    """The same, tiled."""
    student, teacher = Head(hidden, weight, bias), Head(teacher_hidden, teacher_weight)
    return linear_divergence(student, teacher, temperature=TEMPERATURE)


def run(limits: Limits, suite: Suite, peers: dict[str, bool]) -> tuple[list[dict], list[dict]]:
    """The rows and the bars."""
    tokens, features, classes = SIZES
    *head, labels = exact.problem(tokens, features, classes)
    advantages = normal(3, tokens)
    teacher = exact.problem(tokens, TEACHER_FEATURES, classes)[:2]
    matmul = 2.0 * tokens * features * classes
    ratio_of_teacher = TEACHER_FEATURES / features
    parts = (
        ("log-probabilities", naive_log_probs, our_log_probs, (labels, advantages), 3.0, 7),
        ("divergence", naive_divergence, our_divergence, teacher, 3.0 + ratio_of_teacher, 4),
    )
    rows: list[dict] = []
    bars: list[dict] = []
    for name, naive, ours, others, matmuls, leaner in parts:
        cases = [
            compiled_case(
                which, jax.value_and_grad(function, (0, 1, 2)), *head, *others,
                flops=matmuls * matmul,
            )
            for which, function in (("naive", naive), ("tiled", ours))
        ]  # fmt: skip
        expected, found = (jax.block_until_ready(case.run()) for case in cases)
        group = f"{name}, {tokens}x{features}, {classes} classes"
        before, after = measure(group, cases, 1 if suite == "quick" else 5, limits)
        memory = [row["extra_info"]["temp_bytes"] for row in (before, after)]
        rows += [before, after]
        bars += [
            bar(f"{name}: naive / tiled, time", ratio(before, after)),
            bar(
                f"{name}: naive / tiled, temporary memory", memory[0] / memory[1], at_least=leaner
            ),
            bar(
                f"{name}: tiled against naive, largest relative difference",
                difference(found, expected),
            ),
        ]  # fmt: skip
    return rows, bars
