"""Groups: per-layer dimensions `STEM.1`, `STEM.2`, ..., that may be given once, as `STEM`.

A group may name the dimension that counts how many of its members are used (the layers, say); the
members beyond hold 0, "no such layer".
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence

UNUSED = 0


@dataclasses.dataclass(frozen=True)
class Group:
    """Dimensions that may be given once for all.

    Attributes:
      name: the stem, which the shorthand uses.
      members: names of the dimensions, in order.
      count: the dimension that says how many members are used; all of them where None.
    """

    name: str
    members: tuple[str, ...]
    count: str | None = None

    def check(self, dimensions: Mapping) -> None:
        """Refuse a group that does not fit a space's dimensions, given by name.

        Raises:
          ValueError: a member or the count is missing, or a member that can be unused lacks 0.
        """
        where, members = f"group {self.name}", self.members
        if self.name in dimensions or not members or len(set(members)) != len(members):
            raise ValueError(f"{where}: needs members, each once, and a name of its own")
        for name in (*members, *((self.count,) if self.count else ())):
            if name not in dimensions:
                raise ValueError(f"{where}: there is no dimension {name}")
        if self.count is None:
            return
        if self.count in members or not dimensions[self.count].is_numeric:
            raise ValueError(f"{where}: its count must be a numeric dimension outside it")
        for place, member in enumerate(members):
            sometimes_unused = place >= dimensions[self.count].choices[0]
            if sometimes_unused and UNUSED not in dimensions[member].choices:
                raise ValueError(f"{where}: {member} needs the choice {UNUSED}, for no such layer")

    def used(self, config: Mapping) -> int:
        """Return how many members `config` uses; all where its count is no number."""
        number = config.get(self.count)
        if self.count is None or isinstance(number, bool) or not isinstance(number, numbers.Real):
            return len(self.members)
        if not -math.inf < number < len(self.members):
            return len(self.members)
        return max(math.floor(number), 0)

    def expand(self, config: dict) -> None:
        """Replace the stem by the members that `config` does not give itself."""
        if self.name not in config:
            return
        value, used = config.pop(self.name), self.used(config)
        for place, member in enumerate(self.members):
            config.setdefault(member, value if place < used else UNUSED)

    def shorten(self, config: dict) -> dict:
        """Replace the members by the stem where those used agree and the others are unused."""
        if any(member not in config for member in self.members):
            return config
        used = self.used(config)
        values = [config[member] for member in self.members]
        same = used > 0 and all(value == values[0] for value in values[:used])
        if not same or any(value != UNUSED for value in values[used:]):
            return config
        short = {}
        for name, value in config.items():
            if name == self.members[0]:
                short[self.name] = value
            elif name not in self.members:
                short[name] = value
        return short


def numbered_groups(names: Sequence[str]) -> dict[str, Group]:
    """Find the stems of which `names` has STEM.1, STEM.2, ... without a gap, two at least."""
    groups = {}
    for name in names:
        stem, dot, number = name.rpartition(".")
        if not dot or number != "1" or stem in names:
            continue
        members = [name]
        while (following := f"{stem}.{len(members) + 1}") in names:
            members.append(following)
        if len(members) > 1:
            groups[stem] = Group(stem, tuple(members))
    return groups


def groups_from_json(value) -> dict[str, Group]:
    """Read `{STEM: {"members": [NAME, ...], "count": NAME}}`; `count` may be left out.

    Raises:
      ValueError: it is not that.
    """
    problem = "groups are {NAME: {'members': [NAME, ...], 'count': NAME}}, count may be left out"
    if not isinstance(value, Mapping):
        raise ValueError(problem)
    groups = {}
    for name, entry in value.items():
        if not isinstance(entry, Mapping) or not {"members"} <= set(entry) <= {"members", "count"}:
            raise ValueError(problem)
        members, count = entry["members"], entry.get("count")
        texts = isinstance(members, list) and all(isinstance(member, str) for member in members)
        if not texts or not isinstance(count, str | None):
            raise ValueError(problem)
        groups[name] = Group(name, tuple(members), count)
    return groups


def groups_to_json(groups: Mapping[str, Group]) -> dict:
    """Return what `groups_from_json` reads."""
    return {
        name: {"members": list(group.members)} | ({"count": group.count} if group.count else {})
        for name, group in groups.items()
    }
