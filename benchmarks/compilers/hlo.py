"""Reads a compiled program's HLO text: what runs how often, and how many bytes it touches.

The text is XLA's own, scheduled: computations of one instruction a line, each with its shape, its
operands and its attributes. A ``while`` runs its body as often as its condition lets it, and XLA's
own sums (``cost_analysis``) count it once: here the call tree is walked with its trips.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Instruction(NamedTuple):
    """One line of a computation; ``rest`` is the text of its attributes."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    rest: str

    @property
    def source(self) -> str:
        """The JAX operation that it comes from, as XLA names it; empty where XLA made it."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    def called(self, attribute: str) -> str:
        """The computation of an attribute such as ``body``; empty where it has none."""
        found = re.search(rf"\b{attribute}=%?([^\s,{{}}]+)", self.rest)
        return found[1] if found else ""


class Program(NamedTuple):
    """The computations by name, and the one that is run."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def root(self, computation: str) -> Instruction:
        """The result of a computation: the text may have it anywhere, and marks it."""
        return self.computations[computation]["ROOT"]


class Executed(NamedTuple):
    """An instruction of a computation, how often it runs, and of a ``while`` its trips.

    A loop whose trips the text does not say (None) counts once.
    """

    computation: str
    instruction: Instruction
    times: int
    trips: int | None = None


_HEAD = re.compile(r"^(ENTRY )?%?(\S+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?(\S+) = (.*)$")


def parse(text: str) -> Program:
    """The program of ``compiled.as_text()``."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if head := _HEAD.match(line):
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):  # behind it may stand a thread, as of a SparseCore
            current = None
        elif found := _LINE.match(line):
            instruction = _instruction(found[2], found[3])
            current[instruction.name] = instruction
            if found[1]:
                current["ROOT"] = instruction
    if not entry:
        raise ValueError("the text has no ENTRY computation: it is not a compiled program's")
    return Program(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    operands = re.findall(r"%([^\s,()]+)", rest[start:end])
    if rest[:start] in ("constant", "parameter"):  # the value, or the number
        operands = [rest[start + 1 : end - 1]]
    return Instruction(name, rest[:start], shape, tuple(operands), rest[end:])


def _closing(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at ``start``."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError(f"a parenthesis is not closed in {text[start : start + 80]!r}")


class _Scope(NamedTuple):
    """A computation that runs: a loop's knows the tuple that went in, and what stands around it."""

    name: str
    carried: Instruction | None = None
    outer: _Scope | None = None


def executed(program: Program, cost: Callable[[Instruction], float]) -> list[Executed]:
    """Every instruction that runs, with the trips of the loops around it.

    Of a conditional the branch that costs most is taken. What a fusion or a reduction calls is part
    of it, and is left out; so are the conditions of loops, which XLA knows the trips of.
    """
    return list(_executed(program, _Scope(program.entry), cost, 1))


def _executed(
    program: Program, scope: _Scope, cost: Callable[[Instruction], float], times: int
) -> Iterator[Executed]:
    for key, instruction in program.computations[scope.name].items():
        if key == "ROOT":  # the same instruction stands under its own name
            continue
        if instruction.opcode == "while":
            trips = trip_count(program, scope, instruction)
            yield Executed(scope.name, instruction, times, trips)
            carried = program.computations[scope.name][instruction.operands[0]]
            body = _Scope(instruction.called("body"), carried, scope)
            yield from _executed(program, body, cost, times * (1 if trips is None else trips))
            continue
        yield Executed(scope.name, instruction, times)
        if instruction.opcode == "conditional":
            branches = [
                list(_executed(program, _Scope(branch), cost, times))
                for branch in _branches(instruction)
            ]
            yield from max(branches, key=lambda b: sum(cost(e.instruction) * e.times for e in b))
        elif instruction.opcode in ("call", "async-start"):
            callee = instruction.called("to_apply") or instruction.called("calls")
            yield from _executed(program, _Scope(callee), cost, times)


def unknown_loops(runs: list[Executed]) -> int:
    """How many loops count once because their trips are unknown."""
    return sum(run.instruction.opcode == "while" and run.trips is None for run in runs)


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    if listed:
        return re.findall(r"%?([^\s,]+)", listed[1])
    return [instruction.called(f"{value}_computation") for value in ("true", "false")]


def trip_count(program: Program, scope: _Scope, loop: Instruction) -> int | None:
    """How often the body of a ``while`` in ``scope`` runs; None where the text does not say.

    XLA for GPU writes it down. XLA for TPU does not: there the condition compares a counter of the
    carry with a constant, and the body adds a constant to what went in.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    carried = program.computations[scope.name][loop.operands[0]]
    condition = _Scope(loop.called("condition"), carried, scope)
    body = _Scope(loop.called("body"), carried, scope)
    compare = program.root(condition.name)
    if compare.opcode != "compare" or "direction=LT" not in compare.rest:
        return None
    place = _place(program, condition, compare.operands[0])
    if place is None or carried.opcode != "tuple":
        return None
    added = _source(program, body, program.root(body.name).operands[place])
    steps = [o for o in added.operands if _place(program, body, o) != place]
    if added.opcode != "add" or len(steps) != 1:
        return None
    bound = _constant(program, condition, compare.operands[1])
    first = _constant(program, scope, carried.operands[place])
    step = _constant(program, body, steps[0])
    if bound is None or first is None or not step:
        return None
    return max(0, -(-(bound - first) // step))


def _source(program: Program, scope: _Scope, name: str) -> Instruction:
    """What a value is a copy of."""
    instruction = program.computations[scope.name][name]
    while instruction.opcode in ("copy", "bitcast"):
        instruction = program.computations[scope.name][instruction.operands[0]]
    return instruction


def _place(program: Program, scope: _Scope, name: str) -> int | None:
    """Which element of the carry a value is; None for any other."""
    instruction = _source(program, scope, name)
    if instruction.opcode != "get-tuple-element":
        return None
    if program.computations[scope.name][instruction.operands[0]].opcode != "parameter":
        return None
    found = re.search(r"index=(\d+)", instruction.rest)
    return int(found[1]) if found else None


def _constant(program: Program, scope: _Scope, name: str) -> int | None:
    """The constant that a value is, be it carried through loops from outside of them."""
    instruction = _source(program, scope, name)
    if instruction.opcode == "constant":
        text = instruction.operands[0]
        return int(text) if re.fullmatch(r"-?\d+", text) else None
    place = _place(program, scope, name)
    if place is None or scope.carried is None or scope.outer is None:
        return None
    if scope.carried.opcode != "tuple":
        return None
    return _constant(program, scope.outer, scope.carried.operands[place])
