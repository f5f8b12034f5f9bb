"""What got slower between two results."""

from __future__ import annotations

from rich.table import Table


def compare(before: dict, after: dict, threshold: float = 1.1) -> tuple[Table, list[str]]:
    """A table of the ratios after / before, and the names that got slower.

    A case is slower if its median grew by more than ``threshold`` and its fastest round is above
    the other's median: a noisy round alone is no regression. Of two machines the table has the
    ratios and says that they are two, and nothing is called slower.
    """
    apart = [
        f"{name} {before['machine_info'].get(name)} and {after['machine_info'].get(name)}"
        for name in ("device", "cpu", "cores")
        if before["machine_info"].get(name) != after["machine_info"].get(name)
    ]
    old = {row["fullname"]: row["stats"] for row in before["benchmarks"]}
    new = {row["fullname"]: row["stats"] for row in after["benchmarks"]}
    title = f"Two machines: {', '.join(apart)}" if apart else None
    table = Table("case", "before ms", "after ms", "after / before", "", title=title)
    slower = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            table.add_row(name, "", "", "", "only " + ("after" if name in new else "before"))
            continue
        a, b = old[name], new[name]
        ratio = b["median"] / a["median"]
        verdict = ""
        if apart:
            verdict = ""
        elif ratio > threshold and b["min"] > a["median"]:
            verdict = "slower"
            slower.append(name)
        elif ratio < 1 / threshold and b["median"] < a["min"]:
            verdict = "faster"
        table.add_row(
            name, f"{a['median'] * 1e3:.2f}", f"{b['median'] * 1e3:.2f}", f"{ratio:.2f}", verdict
        )
    return table, slower
