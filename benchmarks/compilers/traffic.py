"""How many bytes an instruction of a compiled program reads and writes.

Each operand and result once, but for what is touched in part: a fusion that slices or gathers from
an operand reads the slices, one that updates an array in place reads and writes the update.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from benchmarks.compilers.hlo import Instruction, Program


class Traffic(NamedTuple):
    """Bytes that are read and written."""

    read: int
    written: int


_LEAF = re.compile(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]")
_PART = ("dynamic-slice", "gather", "slice")  # reads what it returns of its first operand
_UPDATE = {"dynamic-update-slice": 1, "scatter": 2}  # writes that operand into its first
_SAME = ("bitcast", "copy", "convert", "reshape", "transpose")


def bytes_of(shape: str) -> int:
    """The bytes of a shape as HLO writes it, a tuple's of all its parts.

    >>> bytes_of("(bf16[16,32]{1,0}, f32[], pred[8]{0})")
    1036
    """
    return sum(
        math.ceil(_bits(dtype) * math.prod(map(int, filter(None, sizes.split(",")))) / 8)
        for dtype, sizes in _LEAF.findall(shape)
    )


def _bits(dtype: str) -> int:
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 8  # pred


def traffic(program: Program, computation: str, instruction: Instruction) -> Traffic:
    """What one run of an instruction of ``computation`` reads and writes."""
    around = program.computations[computation]
    operands = [around[name] for name in instruction.operands if name in around]
    if instruction.opcode in ("fusion", "fusion-start"):
        inside = program.computations[instruction.called("calls")]
        parameters = {
            int(i.operands[0]): i.name for i in inside.values() if i.opcode == "parameter"
        }
        read = sum(
            _read(inside, parameters[at], bytes_of(o.shape)) for at, o in enumerate(operands)
        )
        return Traffic(read, _written(inside, inside["ROOT"]))
    if instruction.opcode in _PART:
        return Traffic(bytes_of(instruction.shape), bytes_of(instruction.shape))
    if instruction.opcode in _UPDATE:
        update = bytes_of(operands[_UPDATE[instruction.opcode]].shape)
        return Traffic(update, update)
    written = bytes_of(instruction.shape)
    if "__cublas" in instruction.rest:  # its last result is a workspace
        written -= bytes_of(instruction.shape.rpartition(", ")[2])
    return Traffic(sum(bytes_of(o.shape) for o in operands), written)


def _read(inside: dict[str, Instruction], name: str, whole: int) -> int:
    """How much of a fusion's parameter its users read, at most ``whole`` bytes."""
    total = 0
    for key, user in inside.items():
        if key == "ROOT" or name not in user.operands:
            continue
        first_only = user.operands[0] == name and name not in user.operands[1:]
        if user.opcode in _PART and first_only:
            total += bytes_of(user.shape)
        elif user.opcode == "bitcast":
            total += _read(inside, user.name, whole)
        elif not (user.opcode in _UPDATE and first_only):
            return whole
    return min(total, whole)


def _written(inside: dict[str, Instruction], result: Instruction) -> int:
    """How much a fusion writes of a result: of an update in place the update."""
    if result.opcode == "tuple":
        return sum(_written(inside, inside[name]) for name in result.operands)
    at = result
    while at.opcode in _SAME and at.operands[0] in inside:
        at = inside[at.operands[0]]
    if at.opcode in _UPDATE:
        return bytes_of(inside[at.operands[_UPDATE[at.opcode]]].shape)
    return bytes_of(result.shape)
