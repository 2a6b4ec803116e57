"""What became of the rows of a person's files: used at which size, or left out and why."""

import dataclasses
from collections.abc import Mapping, Sequence

NAMED = 3  # rows of one kind that are named where many are left out
MOST_SIZES = 8  # that are listed, the nearest first


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A row that is not learned from.

    Attributes:
      place: where the row stands: "runs.csv, line 7".
      reason: why, with the row's own value: "loss is lost, not a number".
      kind: the reason without that value, alike for many rows.
    """

    place: str
    reason: str
    kind: str


@dataclasses.dataclass(frozen=True)
class SizeUsed:
    """Rows of one size that are learned from.

    Attributes:
      name: the size: "parameters=1.9e+07,tokens=3.8e+08".
      rows: how many.
      configurations: different ones among them.
      ended: how many rows ended in each way: ok, diverged, infeasible.
    """

    name: str
    rows: int
    configurations: int
    ended: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Usage:
    """What became of all rows that were read. Their numbers add up to `read`.

    Attributes:
      read: rows of runs in the files.
      sizes: what is learned from, the size nearest to the target first.
      trials: rows of the target's own size that have ended: the expensive runs so far.
      running: rows of the target's own size that are under way.
      left_out: the others.
    """

    read: int
    sizes: tuple[SizeUsed, ...]
    trials: int
    running: int
    left_out: tuple[LeftOut, ...]

    @property
    def used(self) -> int:
        """Rows that are learned from, cheap ones and expensive ones."""
        return sum(size.rows for size in self.sizes) + self.trials

    def describe(self) -> str:
        """Write it for a terminal: the counts, a line a size, a line for each reason."""
        counts = f"{self.read} read, {self.used} used"
        if self.sizes:
            each = "one size" if len(self.sizes) == 1 else f"{len(self.sizes)} sizes"
            counts += f" ({self.used - self.trials} cheap ones of {each}"
            counts += f", {self.trials} of the target's size)"
        if self.running:
            counts += f", {self.running} of the target's size under way"
        lines = [f"{counts}, {len(self.left_out)} left out"]
        for size in self.sizes[:MOST_SIZES]:
            failed = [f"{n} {status}" for status, n in size.ended.items() if status != "ok"]
            ended = f"; {', '.join(failed)}" if failed else ""
            rows, configs = _count(size.rows, "row"), _count(size.configurations, "configuration")
            lines.append(f"{size.name}: {rows}, {configs}{ended}")
        if further := self.sizes[MOST_SIZES:]:
            lines.append(f"and {sum(s.rows for s in further)} rows of {len(further)} more sizes")
        return "\n".join(f"  {line}" for line in [*lines, *map(_one_line, self._kinds())])

    def _kinds(self) -> list[list[LeftOut]]:
        found: dict[str, list[LeftOut]] = {}
        for each in self.left_out:
            found.setdefault(each.kind, []).append(each)
        return list(found.values())

    def to_json(self) -> dict:
        """Return plain values; every row that is left out is named."""
        return {
            "read": self.read,
            "used": self.used,
            "sizes": [dataclasses.asdict(size) for size in self.sizes],
            "trials": self.trials,
            "running": self.running,
            "left_out": [{"place": e.place, "reason": e.reason} for e in self.left_out],
        }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _one_line(alike: Sequence[LeftOut]) -> str:
    """Say why rows are left out, and name the first of them."""
    named = alike[: NAMED if len(alike) > NAMED + 1 else len(alike)]
    rest = len(alike) - len(named)
    if len({each.reason for each in alike}) == 1:
        more = f" and {rest} more" if rest else ""
        places = "; ".join(each.place for each in named)
        return f"left out, {len(alike)}: {alike[0].reason} ({places}{more})"
    more = f"; and {rest} more: {alike[0].kind}" if rest else ""
    each_said = "; ".join(f"{each.place}: {each.reason}" for each in named)
    return f"left out, {len(alike)}: {each_said}{more}"
