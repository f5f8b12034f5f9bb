"""What a comparison is held to: a ratio or a size, with its goal where it has one."""

from __future__ import annotations

from typing import Any


def bar(
    name: str, *values: float, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """One bar, as the JSON of a result has it.

    Several values are those of several shapes, and each must meet the goal; a bar of an absent
    peer has none.

    >>> bar("naive / ours, time", 2.0, at_least=1.5)
    {'name': 'naive / ours, time', 'values': [2.0], 'at_least': 1.5}
    """
    goals = {"at_least": at_least, "at_most": at_most}
    given = {which: value for which, value in goals.items() if value is not None}
    return {"name": name, "values": list(values), **given}


def ratio(above: dict[str, Any], below: dict[str, Any]) -> float:
    """The median time of a case over another's; an error where they did not run in turn.

    >>> rows = [{"fullname": n, "stats": {"median": s}, "extra_info": {"turn": 0}}
    ...         for n, s in (("a", 3.0), ("b", 2.0))]
    >>> ratio(*rows)
    1.5
    """
    if above["extra_info"]["turn"] != below["extra_info"]["turn"]:
        names = f"{above['fullname']} and {below['fullname']}"
        raise ValueError(f"a ratio must be of two cases that ran in turn, got {names}")
    return above["stats"]["median"] / below["stats"]["median"]


def goal(row: dict[str, Any]) -> str:
    """The goal in words, empty where there is none."""
    return " and ".join(
        f"{words} {row[which]:g}"
        for which, words in (("at_least", "at least"), ("at_most", "at most"))
        if which in row
    )


def verdict(row: dict[str, Any]) -> str:
    """Whether the goal was met or missed; empty where there is none."""
    if not row["values"]:
        return "not measured"
    if not goal(row):
        return ""
    low, high = row.get("at_least", -float("inf")), row.get("at_most", float("inf"))
    return "met" if all(low <= value <= high for value in row["values"]) else "missed"
