"""What comes in is made safe at the door."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import checks
from tests.inputs import INTEGER_TYPES, on_device


@pytest.mark.parametrize("dtype", INTEGER_TYPES)
def test_integers_become_int32(dtype):
    made = checks.as_integers("ids", np.array([0, 5, 100], dtype))
    assert made.dtype == jnp.int32
    assert made.tolist() == [0, 5, 100]


@pytest.mark.parametrize(
    "values",
    [np.array([2**32 + 3], np.uint64), np.array([2**63 + 1], np.uint64), np.array([2**40])],
)
def test_what_is_beyond_int32_does_not_wrap(values):
    assert checks.as_integers("ids", values).tolist() == [2**31 - 1]


def test_the_lower_end_does_not_wrap():
    assert checks.as_integers("ids", np.array([-(2**40)])).tolist() == [-(2**31)]


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", ["uint32", "int64", "uint64"])
def test_traced_integers_do_not_wrap(dtype):
    with jax.enable_x64(True):
        values = jnp.asarray(np.array([2**32 - 1], dtype))
        made = jax.jit(lambda v: checks.as_integers("ids", v))(values)
    assert made.dtype == jnp.int32
    assert made.tolist() == [2**31 - 1]


@pytest.mark.parametrize("values", [[1, 2], (1, 2), np.array([1, 2]), on_device([1, 2])])
def test_lists_become_arrays(values):
    assert checks.as_integers("ids", values).tolist() == [1, 2]


@pytest.mark.smoke
def test_a_list_of_traced_numbers():
    def f(x):
        return checks.as_floats("x", [x, [x][0] + 1]), checks.as_integers("n", [jnp.int8(3)])

    floats, integers = jax.jit(f)(1.0)
    assert floats.tolist() == [1.0, 2.0]
    assert integers.tolist() == [3]


@pytest.mark.smoke
def test_no_integers():
    assert checks.as_integers("ids", []).dtype == jnp.int32
    for values in ([0.5], jnp.ones(2), np.array([True])):
        with pytest.raises(TypeError, match="ids must be integers, got dtype"):
            checks.as_integers("ids", values)


def test_floats():
    assert checks.as_floats("x", [[1.0, 2.0]]).shape == (1, 2)
    assert checks.as_floats("x", jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(TypeError, match="x must be floating point, got int"):
        checks.as_floats("x", [1, 2])
    with pytest.raises(ValueError, match="x must be an array, got list"):
        checks.as_floats("x", [[1.0], [1.0, 2.0]])


def test_ranges():
    checks.check_range("ids", np.array([0, 4]), 0, 5, "[0, vocab_size)")
    with pytest.raises(ValueError, match=r"ids must lie in \[0, vocab_size\) = \[0, 5\), got 5"):
        checks.check_range("ids", np.array([0, 5]), 0, 5, "[0, vocab_size)")
    with pytest.raises(ValueError, match=r"lengths must lie in \[0, time\] = \[0, 4\], got -1"):
        checks.check_range("lengths", np.array([0, -1]), 0, 5, "[0, time]")
    checks.check_range("ids", np.array([0, 5]), 0, 5, "", except_for=np.array([False, True]))


def test_sizes():
    assert checks.as_sizes("size", [np.int64(2), 3], 2) == (2, 3)
    assert checks.as_sizes("size", np.array([2, 3]), 2) == (2, 3)
    for one in (3, np.int64(3), np.array(3), jnp.int32(3)):
        sizes = checks.as_sizes("size", one, 2)
        assert sizes == (3, 3)
        assert all(type(size) is int for size in sizes)
    for value in (2.0, True, "23", None, [2.0, 3]):
        with pytest.raises(TypeError, match="size must be an integer"):
            checks.as_sizes("size", value, 2)
    with pytest.raises(ValueError, match=r"size must be an integer or 2 of them, got \(1, 2, 3\)"):
        checks.as_sizes("size", (1, 2, 3), 2)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        checks.as_sizes("size", 0, 2)


def test_numbers():
    for value in (0.5, np.float32(0.5), jnp.array(0.5), np.array(0.5)):
        assert checks.as_number("z_loss", value) == 0.5
    for value in ("much", None, [1.0, 2.0]):
        with pytest.raises(TypeError, match="z_loss must be a number known at trace time"):
            checks.as_number("z_loss", value)
    with pytest.raises(TypeError, match="z_loss must be a number known at trace time"):
        jax.jit(lambda value: checks.as_number("z_loss", value))(0.5)
