"""The readers on texts in which every number is known."""

import doctest

import pytest

from benchmarks.compilers import bundles, devices, gpu, hlo, ptx, tpu, traffic
from benchmarks.compilers.compile import Asked
from benchmarks.compilers.records import why

PROGRAM = """\
HloModule jit_f, is_scheduled=true

%fused (p.0: f32[64,8], p.1: s32[], p.2: f32[1,8]) -> f32[64,8] {
  %p.0 = f32[64,8]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %p.2 = f32[1,8]{1,0} parameter(2)
  ROOT %update = f32[64,8]{1,0} dynamic-update-slice(%p.0, %p.2, %p.1, %p.1)
}

%sliced (q.0: f32[64,8], q.1: s32[]) -> f32[1,8] {
  %q.0 = f32[64,8]{1,0} parameter(0)
  %q.1 = s32[] parameter(1)
  ROOT %slice = f32[1,8]{1,0} dynamic-slice(%q.0, %q.1, %q.1), dynamic_slice_sizes={1,8}
}

%inner.body (c: (s32[], f32[64,8], s32[])) -> (s32[], f32[64,8], s32[]) {
  %c = (s32[], f32[64,8]{1,0}, s32[]) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  %array = f32[64,8]{1,0} get-tuple-element(%c), index=1
  %one = s32[] get-tuple-element(%c), index=2
  %row = f32[1,8]{1,0} fusion(%array, %n), kind=kLoop, calls=%sliced, cycles=7
  %written = f32[64,8]{1,0} fusion(%array, %n, %row), kind=kLoop, calls=%fused, cycles=5
  %copy = s32[] copy(%n)
  %next = s32[] add(%copy, %one)
  ROOT %carry = (s32[], f32[64,8]{1,0}, s32[]) tuple(%next, %written, %one)
}

%inner.condition (d: (s32[], f32[64,8], s32[])) -> pred[] {
  %d = (s32[], f32[64,8]{1,0}, s32[]) parameter(0)
  %m = s32[] get-tuple-element(%d), index=0
  %bound = s32[] constant(64)
  ROOT %less = pred[] compare(%m, %bound), direction=LT
}

%outer.body (e: (s32[], f32[64,8], s32[])) -> (s32[], f32[64,8], s32[]) {
  %e = (s32[], f32[64,8]{1,0}, s32[]) parameter(0)
  %k = s32[] get-tuple-element(%e), index=0
  %whole = f32[64,8]{1,0} get-tuple-element(%e), index=1
  %step = s32[] get-tuple-element(%e), index=2
  %start = s32[] constant(4)
  %in = (s32[], f32[64,8]{1,0}, s32[]) tuple(%start, %whole, %step)
  %inner = (s32[], f32[64,8]{1,0}, s32[]) while(%in), condition=%inner.condition, body=%inner.body
  %out = f32[64,8]{1,0} get-tuple-element(%inner), index=1
  %more = s32[] add(%k, %step)
  ROOT %result = (s32[], f32[64,8]{1,0}, s32[]) tuple(%more, %out, %step)
}

%outer.condition (g: (s32[], f32[64,8], s32[])) -> pred[] {
  %g = (s32[], f32[64,8]{1,0}, s32[]) parameter(0)
  ROOT %always = pred[] constant(true)
}

%then (h: f32[64,8]) -> f32[64,8] {
  ROOT %h = f32[64,8]{1,0} parameter(0)
}

%else (i: f32[64,8]) -> f32[64,8] {
  %i = f32[64,8]{1,0} parameter(0)
  ROOT %dear = f32[64,8]{1,0} negate(%i), cycles=100
}

ENTRY %main (x: f32[64,8], p: pred[]) -> f32[64,8] {
  %x = f32[64,8]{1,0:T(8,128)} parameter(0)
  %p = pred[] parameter(1)
  %zero = s32[] constant(0)
  %two = s32[]{:T(128)} constant(2)
  %first = (s32[], f32[64,8]{1,0}, s32[]) tuple(%zero, %x, /*index=2*/%two)
  %outer = (s32[], f32[64,8]{1,0}, s32[]) while(%first), condition=%outer.condition, \
body=%outer.body, backend_config={"known_trip_count":{"n":"3"}}
  %y = f32[64,8]{1,0} get-tuple-element(%outer), index=1
  %either = f32[64,8]{1,0} conditional(%p, %y, %y), true_computation=%then, \
false_computation=%else
  ROOT %z = f32[64,8]{1,0} negate(%either), cycles=11, metadata={op_name="jit(f)/neg"}
}
"""


def cycles(instruction):
    _, _, number = instruction.rest.partition("cycles=")
    return int(number.split(",")[0]) if number else 0


@pytest.fixture
def executed():
    return hlo.executed(hlo.parse(PROGRAM), cycles)


def test_loops_multiply_from_their_counters_or_their_known_trips(executed):
    """From 4 to 64 in steps of 2, which the outer loop carries: 30; three times."""
    times = {run.instruction.name: run.times for run in executed}
    assert times["outer"] == times["z"] == 1
    assert times["inner"] == 3
    assert times["row"] == times["written"] == 90
    assert hlo.unknown_loops(executed) == 0


def test_of_a_conditional_the_dearer_branch_counts(executed):
    assert sum(cycles(run.instruction) * run.times for run in executed) == 90 * 12 + 100 + 11


def test_a_loop_whose_trips_are_unknown_counts_once_and_is_told():
    unknown = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
    executed = hlo.executed(hlo.parse(unknown), cycles)
    assert hlo.unknown_loops(executed) == 1
    assert {run.times for run in executed if run.instruction.name == "row"} == {30}


def test_an_instruction_knows_its_source(executed):
    sources = {run.instruction.name: run.instruction.source for run in executed}
    assert (sources["z"], sources["y"]) == ("jit(f)/neg", "")


def test_of_slices_and_updates_the_part_is_read_and_written():
    program = hlo.parse(PROGRAM)
    body = program.computations["inner.body"]
    row, index = 8 * 4, 4
    assert traffic.traffic(program, "inner.body", body["row"]) == (row + index, row)
    assert traffic.traffic(program, "inner.body", body["written"]) == (row + index, row)
    root = program.root("main")
    assert traffic.traffic(program, "main", root) == (64 * 8 * 4, 64 * 8 * 4)


def test_a_computation_may_end_with_the_thread_that_it_runs_on(executed):
    """As those of a SparseCore do; the rest of the program was taken for a part of it."""
    threaded = PROGRAM.replace("\n}\n\n", '\n}, execution_thread="sparsecore"\n\n')
    assert hlo.executed(hlo.parse(threaded), cycles) == executed


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing")


class Unreadable:
    """A program that compiles, and whose text is cut off."""

    def as_text(self):
        return "HloModule nothing"


def test_a_program_that_cannot_be_read_is_a_record_that_says_so(tmp_path, monkeypatch):
    fields = {"compile_s": 1.5, "temp_bytes": 7}
    monkeypatch.setattr(tpu, "compile_for", lambda *_: (Unreadable(), fields))
    record = tpu.estimate(devices.DEVICES["v6e"], Asked(len, ()), tmp_path)
    assert "no ENTRY" in record.error
    assert "17 characters, the last 'HloModule nothing'" in record.error
    assert (record.refused, record.compile_s, record.temp_bytes) == (False, 1.5, 7)


# One bundle before; a pipelined grid of 3 + 2 steps with a bundle of its own, an empty one, and
# two loops: of 8 in steps of 2, into which a bundle of the grid's was moved, and one that tells no
# trips; and one bundle after.
BUNDLES = """\
= control target key start
LB: loop body
= control target key end

     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sadd.s32 1, %s9 /* iteration index, stage = 0 */ }
   0x2   :  {} /* End region 3 */
   0x3 LB: >> { %s3 = sadd.s32 2, %s3 }
   0x4   : > { %v1 = vadd.f32 %v2, %v3 /* moved
base_bounds: (2, 4) */ }
   0x5   : >> { %p1 = scmp.ge.s32.totalorder %s3, 8 /* loop exit test */ }
   0x6   : > { %v4 = vadd.f32 %v2, %v3 }
   0x7 LB: >> { %p3 = scmp.ge.s32.totalorder %s4, %s5 }
   0x8   : > { %p2 = scmp.ge.s32.totalorder %s2, 5 /* loop exit test */ }
   0x9   :  { %s1 = smov 1 }
"""
UTILIZATION = """\
== CAPACITY:
MXU, SALU, XLU
    4     2    0
== UTILIZATION:
0 1 0
0 0 0
0 0 0
4 0 0
4 0 0
0 0 0
0 0 0
0 0 0
0 0 0
0 1 0
"""


def test_bundles_are_counted_by_the_trips_of_their_loops():
    found = bundles.schedule(BUNDLES, UTILIZATION)
    inner, own = 3 * 4, 5  # bundles times trips, and those of the grid's body but for it
    assert found.cycles == 1 + 3 * (inner + own) + 1
    assert found.unknown_loops == 1
    assert found.units == {"MXU": 2 * 12 / found.cycles, "SALU": 1 / found.cycles}


def test_a_schedule_is_found_by_its_instruction(tmp_path):
    (tmp_path / "17-kernel.1-03-final_bundles.txt").write_text(BUNDLES)
    assert bundles.read(tmp_path, "kernel.1").cycles == bundles.schedule(BUNDLES).cycles
    assert bundles.read(tmp_path, "kernel.1").units == {}
    assert bundles.read(tmp_path, "kernel") is None
    (tmp_path / "18-another-kernel.2-03-final_bundles.txt").write_text(BUNDLES)
    assert bundles.read(tmp_path, "kernel.2") is None
    (tmp_path / "17-kernel.1-01-final_hlo-static-per-bundle-utilization.txt").write_text(
        UTILIZATION
    )
    assert bundles.read(tmp_path, "kernel.1") == bundles.schedule(BUNDLES, UTILIZATION)


def test_a_launch_is_found_by_the_number_of_its_instruction(tmp_path):
    (tmp_path / "m.thunk_sequence.txt").write_text(
        "001: kCopy [source | sink] kCopy\n"
        "002: kWhile [prev=001 (1) | sink]\n  body:\n"
        "    003: kCustomKernel [source | sink] add_7 grid: [6, 2, 1] threads: [128, 1, 1]"
        "  shared_memory: 512 bytes\n"
    )
    (tmp_path / "m.thunk_metadata.txt").write_text(
        'thunk_metadata {\n  thunk_info {\n    profile_annotation: "add.7"\n    thunk_id: 3\n  }\n}'
    )
    assert gpu._launches(tmp_path) == {"add.7": ("add_7", 12, 128, 512)}


@pytest.mark.parametrize("module", [bundles, devices, hlo, ptx, traffic])
def test_the_examples_are_true(module):
    assert doctest.testmod(module).failed == 0


def test_a_refusal_is_ours_and_an_error_the_compilers():
    ours = ValueError("implementation='pallas' cannot run here: no TPU")
    assert why(ours) == {"error": f"ValueError: {ours}", "refused": True}
    assert why(RuntimeError("first\nsecond")) == {"error": "RuntimeError: first", "refused": False}
