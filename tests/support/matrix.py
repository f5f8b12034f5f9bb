"""What works with what: every public function of the kernels, in every way that it is used.

A cell of the table is an experiment: the function is run, transformed and compared with itself, or
lowered for a platform. ``test_matrix.py`` runs each and holds it against ``docs/support.md``;
``python -m tests.support.matrix`` writes that page from the outcomes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxnets.kernels import (
    SGD,
    CandidateQueue,
    GRUParameters,
    LearnedUnigram,
    LogUniform,
    LSTMParameters,
    Mixture,
    SparseRows,
    StreamingFrequency,
    Tiles,
    Uniform,
    Unigram,
    VocabSharding,
    add_rows,
    bpr_loss,
    bpr_max_loss,
    checked_loss,
    compiling_for,
    depthwise_conv,
    draw_samples,
    fold_batch_norm,
    gather_rows,
    gbce_loss,
    gru,
    hardest_samples,
    in_batch_samples,
    in_batch_softmax_cross_entropy,
    linear_divergence,
    linear_label_rank,
    linear_log_probs,
    linear_sigmoid_cross_entropy,
    linear_softmax_cross_entropy,
    linear_softmax_update,
    linear_top_k,
    lstm,
    mixed_samples,
    nce_loss,
    negative_sampling_loss,
    pointwise_conv,
    recurrent_layers,
    rows_from_dense,
    sampled_softmax_cross_entropy,
    scalable_cross_entropy,
    to_dense,
)
from tests.fixed_samples import fixed_samples
from tests.lowering import for_gpu
from tests.near import assert_near

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
YES, NO, NONE = "yes", "no", "-"
DTYPES = ("float32", "bfloat16", "float16", "float64")
TRANSFORMATIONS = ("jit", "grad", "jvp", "vmap", "remat", "scan", "shard_map")
PLATFORMS = ("cpu", "gpu", "tpu")

VOCAB, FEATURES, TOKENS, HIDDEN, TIME = 48, 6, 8, 5, 4


class Subject(NamedTuple):
    """A function of float arrays (what is differentiated) to a tree of arrays.

    ``platforms``: the Pallas implementations need one to be compiled for. ``by_key``: its arrays
    choose a key and nothing else, so that one program draws for every dtype of them.
    """

    name: str
    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    differentiable: bool = True
    platforms: tuple[str, ...] = PLATFORMS
    pallas: bool = False
    by_key: bool = False

    def arrays(self, dtype: Any, seed: int = 0) -> list[jax.Array]:
        """Random arrays of its shapes."""
        rng = np.random.default_rng(seed)
        return [jnp.asarray(0.5 * rng.normal(size=shape), dtype) for shape in self.shapes]


LABELS = jnp.asarray(np.arange(TOKENS) * 5 % VOCAB)
SAMPLES = fixed_samples(VOCAB, LABELS, np.arange(16) ** 2 % VOCAB)
LENGTHS = jnp.array([4, 0, 2, 1, 3, 4, 2, 1])
_SOFTMAX = ((TOKENS, FEATURES), (VOCAB, FEATURES), (VOCAB,))
_LSTM = ((TOKENS, TIME, FEATURES), (FEATURES, 4 * HIDDEN), (HIDDEN, 4 * HIDDEN), (4 * HIDDEN,))
_CONV = ((TOKENS, 3, 4, FEATURES), (FEATURES, 7), (7,))


def _full(implementation, hidden, weight, bias):
    return linear_softmax_cross_entropy(
        hidden, weight, LABELS, bias=bias, tiles=Tiles(vocab_tile=20), implementation=implementation
    )


def _full_tokens(hidden, weight, bias):
    return linear_softmax_cross_entropy(hidden, weight, LABELS, bias=bias, reduction="none")


def _sampled(loss, hidden, weight, bias, **options):
    return loss(hidden, weight, LABELS, SAMPLES, bias=bias, **options)


def _lstm(implementation, inputs, *parameters):
    outputs, (c, h) = lstm(
        inputs, None, LSTMParameters(*parameters), lengths=LENGTHS, implementation=implementation
    )
    return outputs, c, h


def _gru(implementation, inputs, *parameters):
    return gru(
        inputs, None, GRUParameters(*parameters), lengths=LENGTHS, implementation=implementation
    )


def _layers(inputs, *parameters):
    first = LSTMParameters(*parameters)
    wide = first._replace(input_kernel=jnp.tile(first.input_kernel[:HIDDEN], (2, 1)))
    outputs, _ = recurrent_layers(inputs, None, [[first, first], [wide]])
    return outputs


def _conv(implementation, inputs, kernel, bias):
    return pointwise_conv(inputs, kernel, bias, activation="gelu", implementation=implementation)


def _rows(table):
    row_ids, rows, local_ids = gather_rows(table, LABELS)
    return add_rows(table, SparseRows(row_ids, 2 * rows)), rows[local_ids]


def _key(hidden):
    """All that depends on the input: what is tested is the rest."""
    return jax.random.fold_in(jax.random.key(0), (hidden * 0).sum().astype(jnp.int32))


def _draw(sampler, hidden):
    return draw_samples(sampler, _key(hidden), 8, LABELS)[1:3]


def _mixed(hidden):
    return mixed_samples(Uniform(VOCAB), _key(hidden), 8, LABELS, _UNIGRAM)[1:3]


def _hardest(hidden, weight, bias):
    """The scores of those chosen: of equal ones another may be."""
    ids = hardest_samples(hidden, weight, LABELS, SAMPLES, 4, bias=bias, subtract_log_q=False).ids
    logits = hidden.astype(jnp.float32) @ weight.astype(jnp.float32).T + bias.astype(jnp.float32)
    return jnp.take_along_axis(logits, ids, 1)


def _queue(items):
    queue = CandidateQueue.create(TOKENS + 2, FEATURES)
    return queue.push(items, LABELS).push(2 * items, LABELS)


def _stream(hidden):
    ids = LABELS * (1 + (hidden[0, 0] > 0).astype(jnp.int32))
    return StreamingFrequency.create(64).update(ids).update(LABELS).log_expected_count(ids)


def _sharding(tokens=True):
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(AxisType.Auto,) * 2)
    return VocabSharding(mesh, "vocab", "data" if tokens else None)


def _sharded_rows(table):
    return gather_rows(table, LABELS, sharding=_sharding())[1]


_CHECKED = jax.jit(checked_loss(linear_softmax_cross_entropy))
_UNIGRAM = Unigram.from_counts(np.arange(VOCAB) + 1)
_LEARNED = LearnedUnigram.create(VOCAB).update(LABELS)
_MIXTURE = Mixture.create([_UNIGRAM, Uniform(VOCAB)], [3, 1])

SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("linear_softmax_cross_entropy, tiled", partial(_full, "tiled"), _SOFTMAX),
        Subject("the same, a loss for each token", _full_tokens, _SOFTMAX),
        *(
            Subject(f"linear_softmax_cross_entropy, pallas {platform}", partial(_full, "pallas"),
                    _SOFTMAX, platforms=(platform,), pallas=True)
            for platform in ("gpu", "tpu")
        ),
        Subject("sampled_softmax_cross_entropy, gathered",
                partial(_sampled, sampled_softmax_cross_entropy, implementation="gathered"),
                _SOFTMAX),
        *(
            Subject(f"sampled_softmax_cross_entropy, pallas {platform}",
                    partial(_sampled, sampled_softmax_cross_entropy, implementation="pallas"),
                    _SOFTMAX, platforms=(platform,), pallas=True)
            for platform in ("gpu", "tpu")
        ),
        Subject("nce_loss", partial(_sampled, nce_loss), _SOFTMAX),
        Subject("negative_sampling_loss", partial(_sampled, negative_sampling_loss), _SOFTMAX),
        Subject("gbce_loss", partial(_sampled, gbce_loss), _SOFTMAX),
        Subject("bpr_loss", partial(_sampled, bpr_loss), _SOFTMAX),
        Subject("bpr_max_loss", partial(_sampled, bpr_max_loss), _SOFTMAX),
        Subject("scalable_cross_entropy",
                lambda h, w, b: scalable_cross_entropy(
                    h, w, LABELS, jax.random.key(0), bias=b, tokens_per_bucket=TOKENS),
                _SOFTMAX),
        Subject("in_batch_softmax_cross_entropy",
                lambda hidden, items: in_batch_softmax_cross_entropy(hidden, items, LABELS),
                (_SOFTMAX[0], _SOFTMAX[0])),
        Subject("linear_softmax_update",
                lambda h, w, b: linear_softmax_update(h, w, LABELS, SGD(0.5), bias=b)[:4],
                _SOFTMAX, False),
        Subject("in_batch_softmax_cross_entropy, symmetric",
                lambda hidden, items: in_batch_softmax_cross_entropy(
                    hidden, items, LABELS, symmetric=True, tiles=Tiles(3, 5)),
                (_SOFTMAX[0], _SOFTMAX[0])),
        Subject("linear_sigmoid_cross_entropy",
                lambda h, w, b: linear_sigmoid_cross_entropy(
                    h, w, jnp.stack([LABELS, LABELS // 2], 1), bias=b),
                _SOFTMAX),
        Subject("linear_log_probs", lambda h, w, b: linear_log_probs(h, w, LABELS, bias=b)[:3],
                _SOFTMAX),
        Subject("linear_divergence",
                lambda h, w, b: linear_divergence(
                    (h, w, b), (jnp.cos(h), jnp.sin(w)), kind="jsd", labels=LABELS),
                _SOFTMAX),
        Subject("linear_top_k", lambda h, w, b: linear_top_k(h, w, 3, bias=b)[0], _SOFTMAX, False),
        Subject("linear_label_rank",
                lambda h, w, b: linear_label_rank(h, w, LABELS, bias=b).above.astype(jnp.float32),
                _SOFTMAX, False),
        Subject("checked_loss",
                lambda h, w, b: _CHECKED(h, w, LABELS, bias=b)[1],
                _SOFTMAX, False),
        *(
            Subject(f"draw_samples, {type(sampler).__name__}", partial(_draw, sampler),
                    _SOFTMAX[:1], False, by_key=True)
            for sampler in (Uniform(VOCAB), LogUniform(VOCAB), _UNIGRAM, _LEARNED, _MIXTURE)
        ),
        Subject("in_batch_samples",
                lambda h: in_batch_samples(LABELS, -jnp.abs(h[:, 0])).log_expected_count,
                _SOFTMAX[:1], False),
        Subject("hardest_samples", _hardest, _SOFTMAX, False),
        Subject("CandidateQueue", _queue, _SOFTMAX[:1], False),
        Subject("StreamingFrequency", _stream, _SOFTMAX[:1], False),
        Subject("mixed_samples", _mixed, _SOFTMAX[:1], False, by_key=True),
        Subject("gather_rows, add_rows", _rows, (_SOFTMAX[1],)),
        Subject("rows_from_dense, to_dense", lambda g: to_dense(rows_from_dense(g, VOCAB), VOCAB),
                (_SOFTMAX[1],), False),
        Subject("lstm, scan", partial(_lstm, "scan"), _LSTM),
        Subject("lstm, reference", partial(_lstm, "reference"), _LSTM),
        *(
            Subject(f"lstm, pallas {platform}", partial(_lstm, "pallas"), _LSTM,
                    platforms=(platform,), pallas=True)
            for platform in ("gpu", "tpu")
        ),
        Subject("gru, scan", partial(_gru, "scan"),
                ((TOKENS, TIME, FEATURES), (FEATURES, 15), (5, 15), (15,), (15,))),
        Subject("gru, reference", partial(_gru, "reference"),
                ((TOKENS, TIME, FEATURES), (FEATURES, 15), (5, 15), (15,), (15,))),
        Subject("recurrent_layers", _layers, _LSTM),
        Subject("pointwise_conv, matmul", partial(_conv, "matmul"), _CONV),
        Subject("pointwise_conv, reference", partial(_conv, "reference"), _CONV),
        *(
            Subject(f"pointwise_conv, pallas {platform}", partial(_conv, "pallas"), _CONV,
                    platforms=(platform,), pallas=True)
            for platform in ("gpu", "tpu")
        ),
        Subject("depthwise_conv", lambda x, w: depthwise_conv(x, w),
                (_CONV[0], (3, 3, FEATURES))),
        Subject("fold_batch_norm",
                lambda k, b, m, v, s, o: fold_batch_norm(k, b, m, v * v + 0.5, s, o),
                (_CONV[1], *[(7,)] * 5)),
        Subject("linear_softmax_cross_entropy, sharding",
                lambda h, w, b: linear_softmax_cross_entropy(
                    h, w, LABELS, bias=b, sharding=_sharding()),
                _SOFTMAX),
        Subject("sampled_softmax_cross_entropy, sharding",
                lambda h, w, b: sampled_softmax_cross_entropy(
                    h, w, LABELS, SAMPLES, bias=b, sharding=_sharding()), _SOFTMAX),
        Subject("gather_rows, sharding", _sharded_rows, (_SOFTMAX[1],), False),
    )
}  # fmt: skip


def scalar(tree, xp=jnp):
    """A weighted sum of all float leaves, to differentiate; in NumPy, of what is there."""
    leaves = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]
    return sum(
        (xp.asarray(a, np.float32) * np.cos(np.arange(a.size, dtype=np.float32)).reshape(a.shape))
        .sum()
        for a in leaves
    )  # fmt: skip


def compare(got, wanted, dtype, factor: float = 1.0, size: float = 1e-2) -> None:
    """Equal up to the rounding of sums of some tens of terms, of at least ``size``."""
    tolerance = factor * 64 * float(jnp.finfo(dtype).eps)
    assert_near(got, wanted, tolerance, size)


def _coarser(dtype: str) -> float:
    """How much a dtype's rounding is than float32's, if it is more."""
    return max(1.0, float(jnp.finfo(dtype).eps / jnp.finfo(jnp.float32).eps))


REFUSALS = (TypeError, ValueError, NotImplementedError, jax.errors.JAXTypeError)


class Programs:
    """A function, and the programs of it that several experiments share."""

    def __init__(self, function, by_key=False):
        # Functions of their own, so that no trace of another target is reused.
        self.function = lambda *arrays: function(*arrays)
        self.loss = lambda *arrays: scalar(function(*arrays))
        self.jitted = jax.jit(self.function)
        # Op by op only a key depends on the arrays, and what draws by it is one program for all.
        self.run = self.function if by_key else self.jitted
        self._gradients = {}

    def gradients(self, arrays):
        """By each array, of the experiments' one list of arrays: under remat, unless refused.

        A gradient that is right under remat is right without.
        """
        if not self._gradients:
            try:
                self._gradients = {"remat": _gradient(jax.checkpoint(self.loss), arrays)}
            except REFUSALS:
                self._gradients = {"grad": _gradient(self.loss, arrays)}
        return self._gradients


def _gradient(loss, arrays):
    program = jax.jit(jax.grad(loss, tuple(range(len(arrays)))))
    return jax.tree.map(np.asarray, program(*arrays))


@cache
def _programs(name: str) -> Programs:
    return Programs(SUBJECTS[name].function, SUBJECTS[name].by_key)


# Each experiment: (programs, arrays) -> None, or an AssertionError for a wrong number, or
# whatever JAX raises for what it does not support.


def _jit(programs, arrays):
    compare(programs.jitted(*arrays), programs.function(*map(jnp.asarray, arrays)), jnp.float32)


def _grad(programs, arrays):
    """Against finite differences along a random direction."""
    (gradients,) = programs.gradients(arrays).values()
    rng = np.random.default_rng(9)
    direction = [rng.normal(size=a.shape).astype(np.float32) for a in arrays]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    step = np.float32(1e-2)
    ends = [
        scalar(
            programs.jitted(*[a + sign * step * d for a, d in zip(arrays, direction, strict=True)]),
            np,
        )
        for sign in (1, -1)
    ]
    numeric = (ends[0] - ends[1]) / (2 * step)
    norm = sum((d**2).sum() for d in direction) ** 0.5
    size = max(1.0, float(sum((g**2).sum() for g in gradients) ** 0.5))
    # The third derivative, and the rounding of two float32 sums divided by the step.
    assert abs(float(slope - numeric)) < 2e-3 * size * float(norm)


def _jvp(programs, arrays):
    tangents = [np.cos(np.arange(a.size, dtype=a.dtype)).reshape(a.shape) for a in arrays]
    slope = jax.jit(lambda *a: jax.jvp(programs.loss, a, tuple(tangents))[1])(*arrays)
    (gradients,) = programs.gradients(arrays).values()
    terms = np.concatenate([(g * t).reshape(-1) for g, t in zip(gradients, tangents, strict=True)])
    tolerance = 64 * float(jnp.finfo(jnp.float32).eps) * float(np.abs(terms).sum())
    assert abs(float(slope - terms.sum())) < tolerance


def _remat(programs, arrays):
    """As the gradient, whose program it is."""
    if "remat" not in programs.gradients(arrays):  # it was refused: by itself it says why
        _gradient(jax.checkpoint(programs.loss), arrays)
    _grad(programs, arrays)


def _scanned(function):
    """``jax.vmap`` by a loop."""
    return lambda *stacks: jax.lax.scan(lambda _, a: (None, function(*a)), None, stacks)[1]


def _on_devices(function):
    """``jax.vmap`` over two devices: data parallelism by hand."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))

    def on_device(*parts):
        return jax.tree.map(lambda a: a[None], function(*[part[0] for part in parts]))

    spec = P("batch")
    return jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


_MAPS = {"vmap": jax.vmap, "scan": _scanned, "shard_map": _on_devices}


def _mapped(maps, programs, arrays):
    """In each of the maps, one inside the next: over an axis of two problems each."""
    function, shape = programs.function, (2,) * len(maps)
    for each in maps:
        function = each(function)
    factors = np.linspace(-1, 1, 2 ** len(maps), dtype=np.float32)
    alone = [programs.run(*[factor * a for a in arrays]) for factor in factors]
    got = jax.jit(function)(*[np.multiply.outer(factors.reshape(shape), a) for a in arrays])
    wanted = jax.tree.map(lambda *leaves: np.stack(leaves).reshape(shape + leaves[0].shape), *alone)
    compare(got, wanted, jnp.float32)


def _together(names, narrow, widest, programs, arrays):
    """In all of the maps at once, in the widest dtype, and by itself in each narrow one."""
    shape = (2,) * len(names)
    factors = np.linspace(-1, 1, 2 ** len(names), dtype=np.float32)
    mapped = programs.function
    for name in names:
        mapped = _MAPS[name](mapped)
    alone = [programs.run(*[factor * a for a in arrays]) for factor in factors]
    wanted = {widest: jax.tree.map(lambda *ls: np.stack(ls).reshape(shape + ls[0].shape), *alone)}
    inputs = {widest: [np.multiply.outer(factors.reshape(shape), a) for a in arrays]}
    for name in narrow:
        inputs[name] = [a.astype(jnp.dtype(name)) for a in arrays]
        wanted[name] = programs.run(*[a.astype(np.float32) for a in inputs[name]])

    @jax.jit
    def program(inputs):
        return {
            name: (mapped if name == widest else programs.function)(*arrays)
            for name, arrays in inputs.items()
        }

    with jax.enable_x64(widest == "float64"):
        inputs[widest] = [a.astype(widest) for a in inputs[widest]]
        got = jax.tree.map(np.asarray, program(inputs))
    for name in inputs:
        compare(got[name], wanted[name], jnp.float32, factor=_coarser(name))


@cache
def _go_together(name: str) -> tuple[str, ...]:
    """The columns whose experiments pass in one program, and so each in its own; () if none do."""
    subject = SUBJECTS[name]
    narrow = () if subject.by_key else ("bfloat16", "float16")
    widest = "float32" if subject.pallas else "float64"
    # What is split over devices goes into the maps that are not.
    for maps in (tuple(_MAPS), ("vmap", "scan")):
        if _run(subject, partial(_together, maps, narrow, widest)) == YES:
            # Of what draws by a key the values to compare with are those op by op.
            return (*maps, *narrow, widest, *(("jit",) if subject.by_key else ()))
    return ()


_EXPERIMENTS = {
    "jit": _jit, "grad": _grad, "jvp": _jvp, "remat": _remat,
    **{name: partial(_mapped, (each,)) for name, each in _MAPS.items()},
}  # fmt: skip


def transformation(subject: Subject, name: str) -> str:
    """Whether the transformation works, compared with the function as it is."""
    if name in ("grad", "jvp", "remat") and not subject.differentiable:
        return NONE
    if name in ("jit", *_MAPS) and name in _go_together(subject.name):
        return YES
    return _run(subject, _EXPERIMENTS[name])


def _run(subject: Subject, experiment) -> str:
    with _compiled_for(subject):
        arrays = [np.asarray(a) for a in subject.arrays("float32")]
        return _attempt(experiment, _programs(subject.name), arrays)


def dtype(subject: Subject, name: str) -> str:
    """Whether the function takes a dtype, compared with itself in float32 on the same numbers."""
    if name != "float32" and name in _go_together(subject.name):
        return YES
    with jax.enable_x64(name == "float64"):
        arrays = subject.arrays(name)
        same = [np.asarray(a, np.float32) for a in arrays]
    programs = _programs(subject.name)
    with _compiled_for(subject):
        wanted = programs.run(*same)

    def experiment(programs, arrays):
        compare(programs.run(*arrays), wanted, jnp.float32, factor=_coarser(name))

    with jax.enable_x64(name == "float64"), _compiled_for(subject):
        return _attempt(experiment, programs, arrays)


def platform(subject: Subject, name: str) -> str:
    """On CPU it runs, as in other cells; for others it lowers, with its gradient if it has one."""
    if name not in subject.platforms:
        return NONE
    if name == "cpu":
        return YES
    if subject.pallas:
        return _lowers(subject.name, name)
    # For both at once, and so for each.
    return YES if _lowers(subject.name, *PLATFORMS[1:]) == YES else _lowers(subject.name, name)


@cache
def _lowers(subject_name: str, *platforms: str) -> str:
    subject = SUBJECTS[subject_name]
    function = subject.function
    if subject.differentiable:
        function = jax.value_and_grad(
            lambda *arrays: scalar(subject.function(*arrays)), tuple(range(len(subject.shapes)))
        )
    wanted = tuple("cuda" if platform == "gpu" else platform for platform in platforms)

    def experiment(programs, arrays):
        if subject.pallas and platforms == ("gpu",):
            assert for_gpu(programs.function, *arrays)
        else:  # lowers as well
            exported = jax.export.export(programs.jitted, platforms=wanted)(*arrays)
            assert exported.platforms == wanted
            assert exported.mlir_module_serialized

    with compiling_for(platforms[0]) if subject.pallas else contextlib.nullcontext():
        return _attempt(experiment, Programs(function), subject.arrays("float32"))


def _compiled_for(subject: Subject):
    if subject.pallas:
        return compiling_for(subject.platforms[0], interpret=True)
    return contextlib.nullcontext()


def _attempt(experiment, programs, arrays) -> str:
    """``YES``, or ``NO`` where JAX or a check of ours refuses; a wrong number is an error."""
    try:
        experiment(programs, arrays)
    except AssertionError:
        raise
    except REFUSALS:
        return NO
    return YES


COLUMNS = (
    *(("dtype", name, dtype) for name in DTYPES),
    *(("transformation", name, transformation) for name in TRANSFORMATIONS),
    *(("platform", name, platform) for name in PLATFORMS),
)


def rows_of(page: str) -> dict[str, dict[str, str]]:
    """The cells of the page, by function and column."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    names = [name.strip() for name in lines[0].strip("|").split("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in rows}


_INTRODUCTION = """# What works with what

Written by `python -m tests.support.matrix` from the outcomes of its experiments, which the tests
repeat, cell by cell. **yes**: the result was compared, value or gradient, with the function as it
is. **no**: refused with an error. **-**: does not apply (not differentiable, or another platform's
kernel).

- *dtype*: float32 results of the same numbers, within the dtype's rounding.
- *grad* and *remat*, the gradient of the rematerialized function, against finite differences; *jvp*
  against grad; *vmap*, *scan* and *shard_map* against the function called by itself, vmap in scan
  in shard_map where all three go. shard_map is data parallelism by hand, around a function; a
  function with a `sharding` has one inside, and does not go into another.
- *platform*: on CPU everything runs. For gpu (CUDA) and tpu, values and gradients are **lowered**
  here, not run: XLA functions by `jax.export`, Pallas kernels to Triton and Mosaic, whose numbers
  are those of interpret mode. `lstm` by cuDNN is not listed: it cannot be traced without a GPU.
- A forward mode (jvp) is refused where the reverse mode is written by hand; `"reference"`
  implementations have it.

"""


def write() -> None:
    """Runs every experiment and writes the page."""
    names = [name for _, name, _ in COLUMNS]
    lines = ["| function | " + " | ".join(names) + " |", "| --- |" + " :---: |" * len(names)]
    for subject in SUBJECTS.values():
        cells = [experiment(subject, name) for _, name, experiment in COLUMNS]
        lines.append(f"| {subject.name} | " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr)
    PAGE.write_text(_INTRODUCTION + "\n".join(lines) + "\n")


if __name__ == "__main__":
    write()
