"""The readers on programs whose count is known."""

from functools import partial

import jax
import pytest

from benchmarks.compilers import programs, sharded
from benchmarks.compilers.devices import DEVICES, GPUS, TPUS
from tests.compilers import cases


def squares(side, dtype="bfloat16"):
    return (jax.ShapeDtypeStruct((side, side), dtype),) * 2


@pytest.mark.parametrize("name", TPUS)
def test_a_large_matmul_takes_about_the_cycles_of_the_data_sheet(worker, name):
    device, side = DEVICES[name], 4096
    record = worker.estimate(name, cases.matmul, squares(side))
    assert not record.error
    bound = device.bound_s(2.0 * side**3, 3 * 2.0 * side**2, "bfloat16") * device.clock
    assert bound <= record.cycles <= 1.35 * bound
    assert record.fullest.startswith("MXU")
    assert record.argument_bytes == 2 * record.output_bytes == 4 * side**2
    assert record.vmem_bytes > 0


@pytest.mark.parametrize("name", TPUS)
def test_a_scan_of_n_matmuls_takes_n_times_its_body(worker, name):
    few, many, nested = (
        worker.estimate(name, function, squares(512), scheduled=False)
        for function in (
            partial(cases.scanned_matmuls, 6),
            partial(cases.scanned_matmuls, 11),
            partial(cases.nested_matmuls, 3, 7),
        )
    )
    body = sum(part.cycles for part in many.parts if part.times == 11)
    assert body > 0
    assert many.cycles - few.cycles == 5 * body
    assert max(part.times for part in nested.parts) == 21
    assert few.unknown_loops == many.unknown_loops == nested.unknown_loops == 0


@pytest.mark.parametrize("name", TPUS)
def test_a_pallas_matmul_is_counted_as_xlas_is(worker, name):
    """By bundles, loops and grid here, by XLA's own estimate there."""
    side, tile = 2048, 512
    ours = worker.estimate(name, partial(cases.pallas_matmul, tile), squares(side))
    xlas = worker.estimate(name, cases.matmul, squares(side), scheduled=False)
    assert 1 <= ours.cycles / xlas.cycles < 1.6
    (kernel,) = (part for part in ours.parts if part.pallas)
    assert kernel.name.startswith("textbook_matmul")
    assert ours.units["MXU"] > 0.2
    assert ours.unknown_loops == 0
    five = worker.estimate(name, partial(cases.pallas_in_a_loop, 5, tile), squares(side))
    (looped,) = (part for part in five.parts if part.pallas)
    assert looped.times == 5
    assert looped.cycles == pytest.approx(kernel.cycles, rel=0.25)  # it is scheduled anew
    blocks = worker.estimate(name, partial(cases.pallas_matmul, tile), squares(2 * side))
    assert blocks.cycles == pytest.approx(8 * ours.cycles, rel=0.15)


@pytest.mark.parametrize("name", GPUS)
def test_a_matmul_is_one_kernel_that_moves_three_arrays(worker, name):
    record = worker.estimate(name, cases.matmul, squares(1024))
    assert not record.error
    (kernel,) = record.kernels
    array = 2 * 1024**2
    assert (record.launches, record.read, record.written) == (1, 2 * array, array)
    assert kernel.registers > 0
    assert kernel.spilled == record.spilled == 0
    assert 0 < kernel.occupancy <= 1
    assert kernel.threads % 32 == 0
    assert record.memory_s == 3 * array / DEVICES[name].bandwidth


@pytest.mark.parametrize("name", GPUS)
def test_a_scan_of_n_matmuls_launches_n(worker, name):
    few, many = (
        worker.estimate(name, partial(cases.scanned_matmuls, times), squares(512))
        for times in (6, 11)
    )
    (matmuls,) = (kernel for kernel in many.kernels if kernel.name.startswith("gemm"))
    assert matmuls.launches == 11
    body = [kernel for kernel in many.kernels if kernel.launches == 11]
    assert many.launches - few.launches == 5 * len(body)
    assert many.read - few.read == 5 * sum(kernel.read for kernel in body)
    assert many.unknown_loops == 0


@pytest.mark.parametrize("grid", sharded.GRIDS.values(), ids=lambda grid: grid.topology)
def test_of_a_sharded_program_the_communication_is_counted(worker, grid):
    """Over the vocabulary go sums of tokens, and over the tokens the gradient of the weight."""
    shapes = partial(sharded.exact_shapes, grid, 256, 128, 4096)
    record = worker.estimate(grid.device, partial(sharded.exact_loss, grid), shapes)
    assert not record.error
    rows, columns = grid.rows, grid.columns
    times, moved = record.collectives["all-reduce"]
    tokens, classes = 256 // rows, 4096 // columns  # of a device
    gradients = (tokens + classes) * 128
    statistics = 3 * tokens * 4  # a maximum, a sum and the label's logit
    assert times >= 2
    # The gradients in bfloat16 or float32, and the loss.
    assert statistics + 2 * gradients < moved <= statistics + 4 * gradients + 4


def test_of_an_lstm_over_a_batch_only_the_gradients_of_its_parameters_are_sent(worker):
    """And each device runs the Pallas kernel, though nobody wrote a ``shard_map``."""
    grid = sharded.GRIDS["v5p"]
    layer = partial(programs.lstm_outputs, None)
    features = hidden = 128
    shapes = partial(sharded.lstm_shapes, grid, 32, 8, features, hidden)
    record = worker.estimate("v5p", partial(programs.outputs_and_gradients, layer), shapes)
    assert not record.error
    assert any(part.pallas for part in record.parts)
    weights = (features + hidden + 1) * 4 * hidden
    assert list(record.collectives) == ["all-reduce"]
    assert 2 * weights <= record.collectives["all-reduce"][1] <= 4 * weights


def test_a_compiler_that_ends_its_process_is_a_record_and_another_process_takes_over(worker):
    gone = worker.estimate("v5e", cases.ends_its_process, squares(8)[:1])
    assert gone.error == "the compiler ended its process"
    assert not gone.refused
    assert worker.estimate("v5e", cases.matmul, squares(8)).error == ""


@pytest.mark.parametrize("name", ["H100", "B200"])
def test_a_kernel_on_mosaic_gpu_is_counted_with_its_registers(worker, name):
    """Both read their operands once, by XLA's account, and spill nothing."""
    tokens, features, vocab = 1024, 512, 8192
    shapes = ((tokens, features), "bfloat16"), ((vocab, features), "bfloat16"), ((tokens,), "int32")
    arguments = tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes)
    loss = partial(programs.exact_loss, "mosaic_gpu")
    record = worker.estimate(name, partial(programs.value_and_gradients, loss), arguments)
    assert not record.error
    found = {kernel.name: kernel for kernel in record.kernels}
    statistics, gradient = (
        found[f"softmax_{part}_mosaic_gpu_kernel"] for part in ("statistics", "gradient")
    )
    operands = 2 * (tokens + vocab) * features
    for kernel in (statistics, gradient):
        assert operands <= kernel.read <= 1.01 * operands
        assert 0 < kernel.registers <= 168  # what three warpgroups leave each of their threads
        assert kernel.spilled == 0
    assert gradient.written == 2 * tokens * vocab


@pytest.mark.parametrize("moves", [False, True])
def test_a_table_of_the_host_stays_there(worker, moves):
    """Of 512 MB no more than the rows of a step come to a TPU, and it is updated in place."""
    function = cases.offloaded_move if moves else cases.offloaded_rows
    shapes = partial(cases.offloaded_shapes, "v5e", moves)
    record = worker.estimate("v5e", function, shapes, donated=2 if moves else 0, counted=False)
    assert record.error == ""
    assert record.argument_bytes < 1e6
    assert record.temp_bytes < 4e6
