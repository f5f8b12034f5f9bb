"""From a trace to the hot kernel."""

import re

import jax
import jax.numpy as jnp
import pytest
from typer.testing import CliRunner

from benchmarks import profiling
from benchmarks.__main__ import app
from benchmarks.harness import compiled_case
from tests.support.matrix import SUBJECTS


def large_and_small(a):
    with jax.named_scope("large"):
        b = a @ a
    with jax.named_scope("small"):
        return jnp.tanh(b[:8]).sum()


def test_the_hottest_operation_is_named_by_its_scope(tmp_path):
    case = compiled_case("two scopes", large_and_small, jnp.ones((700, 700)))
    profiling.trace(case.run, tmp_path)
    hot = profiling.hottest(tmp_path, case.program)
    assert "large" in hot[0].scope
    assert hot[0].runs == 10
    assert 0.3 < hot[0].share <= 1
    assert hot[0].seconds > hot[-1].seconds > 0 or len(hot) == 1
    assert sum(h.share for h in hot) < 1 + 1e-9


def test_a_loop_is_not_counted_with_what_is_in_it(tmp_path):
    def loop(a):
        return jax.lax.fori_loop(0, 5, lambda _, b: jnp.tanh(b @ a), a)

    case = compiled_case("loop", loop, jnp.ones((300, 300)) / 300)
    profiling.trace(case.run, tmp_path)
    hot = profiling.hottest(tmp_path, case.program)
    assert not any("while" in h.operation for h in hot)
    assert max(h.runs for h in hot) == 50


def test_no_trace(tmp_path):
    with pytest.raises(ValueError, match="folder must hold a trace"):
        profiling.hottest(tmp_path, "")


@pytest.mark.parametrize(
    ("scope", "readable"),
    [
        ("jit(step)/transpose(jvp(jit(_lstm)))/lstm/while/body/dot_general",
         "backward step / lstm / dot_general"),
        ("jit(f)/jit(_loss)/nce_loss/nce_loss/exp", "f / nce_loss / exp"),
        ("", ""),
    ],
)  # fmt: skip
def test_readable_scopes(scope, readable):
    assert profiling._readable(scope) == readable


def test_the_command_traces_each_case(tmp_path, monkeypatch):
    case = compiled_case("two scopes", large_and_small, jnp.ones((64, 64)))
    monkeypatch.setattr(profiling, "cases", lambda: [case])
    result = CliRunner().invoke(app, ["--profile", "--traces", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "two scopes" in result.output
    assert list((tmp_path / "two_scopes").rglob("*.trace.json.gz"))


SCOPES = {
    "the same": "linear_softmax_cross_entropy",
    "checked_loss": "linear_softmax_cross_entropy",
    "recurrent_layers": "lstm",
}


@pytest.mark.parametrize("name", [name for name in SUBJECTS if "pallas" not in name])
def test_every_kernel_runs_under_its_name(name):
    subject, first = SUBJECTS[name], name.split(",")[0]
    scope = SCOPES.get(first, first)
    lowered = jax.jit(lambda *a: subject.function(*a)).lower(*subject.arrays(jnp.float32))
    locations = re.findall(r'loc\("([^"]*)"', lowered.as_text(debug_info=True))
    assert any(scope in location.split("/")[:-1] for location in locations), name
