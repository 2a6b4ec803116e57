"""Reads the text of a compiled program: computations, instructions, and how often each executes.

The text is XLA's (`compiled.as_text()`), scheduled and of one device. `parse` makes a `Program` of
it. `Program.executed` walks through everything that executes, with the number of times that it
does; `Program.origins` follows an array back to the program's arguments.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

# Bytes an element; types of bits below 8 are packed.
_BITS = re.compile(r"(?:bf|f|s|u|c)(\d+)")
_SHAPE = re.compile(r"(pred|token|opaque|[a-z]+\d+\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|true_computation|false_computation)=%([\w.\-]+)"
    r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)
# These bring values to another place, type or order, and compute none.
_MOVING = {
    *("bitcast", "bitcast-convert", "copy", "copy-start", "copy-done", "convert", "reshape"),
    *("transpose", "slice", "dynamic-slice", "optimization-barrier", "all-gather"),
    *("all-gather-start", "all-gather-done", "all-to-all", "collective-permute"),
    *("collective-permute-start", "collective-permute-done", "async-start", "async-update"),
    *("async-done", "get-tuple-element", "slice-start", "slice-done"),
}


@dataclasses.dataclass(frozen=True)
class Array:
    """An array on one device: its type, as XLA spells it (f32, bf16, ...), and dimensions."""

    kind: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes without the padding that a layout may add."""
        bits = _BITS.match(self.kind)
        width = int(bits[1]) if bits else 8 if self.kind == "pred" else 0
        return math.prod(self.dims) * width // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    name: unique in its computation.
    opcode: what it does, `all-reduce-start` for example.
    results: a tuple's arrays are flat, in order.
    parts: the results, one tuple for each element of the outermost tuple.
    operands: names of instructions of the same computation.
    rest: the text after the operands: attributes, metadata, backend config.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    parts: tuple[tuple[Array, ...], ...]
    operands: tuple[str, ...]
    argument: str
    rest: str
    is_root: bool

    def attribute(self, name: str) -> str:
        """Return the name of a computation that an attribute names (body, condition); "" else."""
        found = re.search(rf"\b{name}=%([\w.\-]+)", self.rest)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls, other than a loop's."""
        names = []
        for one, several in _CALLED.findall(self.rest.partition(", metadata=")[0]):
            names += [one] if one else _NAME.findall(several)
        return names

    @property
    def cycles(self) -> int:
        """The TPU compiler's estimate; 0 where it makes none."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.rest)
        return int(found[1]) if found else 0

    @property
    def op_name(self) -> str:
        """Where it comes from: for an argument the argument's name, else JAX's operations."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
        return found[1] if found else ""

    @property
    def index(self) -> int:
        """Which element a get-tuple-element takes."""
        found = re.search(r"\bindex=(\d+)", self.rest)
        return int(found[1]) if found else 0


@dataclasses.dataclass(frozen=True)
class Step:
    """An instruction that executes.

    times: how often it does; inside a loop of unknown length as often as one pass does.
    stored: whether its results are arrays in memory; inside a fusion they are not.
    unknown_loop: it is inside a loop of unknown length.
    asynchronous: it is inside an asynchronous call or fusion.
    path: (instruction, name of its computation) of the calls and loops around, outermost first.
    """

    instruction: Instruction
    computation: str
    times: int
    stored: bool
    unknown_loop: bool
    asynchronous: bool
    path: tuple[tuple[Instruction, str], ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: computation -> instruction -> `Instruction`, and the entry's name."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def executed(self) -> Iterator[Step]:
        """Yield every instruction that executes. Every branch of a conditional counts."""
        yield from self._inside(self.entry, 1, True, False, False, ())

    def _inside(self, name, times, stored, unknown, asynchronous, path) -> Iterator[Step]:
        for each in self.computations[name].values():
            yield Step(each, name, times, stored, unknown, asynchronous, path)
            deeper = (*path, (each, name))
            if each.opcode == "while":
                trips = self.trips(each, name, path)
                for part in ("body", "condition"):
                    yield from self._inside(
                        each.attribute(part), times * (trips or 1), stored,
                        unknown or trips is None, asynchronous, deeper,
                    )  # fmt: skip
            elif each.opcode in ("fusion", "call", "conditional", "async-start"):
                fused = each.opcode == "fusion"
                # XLA for TPU names a fusion async where it overlaps a collective with it.
                apart = each.opcode == "async-start" or (fused and "async" in each.name)
                for part in each.called:
                    yield from self._inside(
                        part, times, stored and not fused, unknown, asynchronous or apart, deeper
                    )

    def trips(self, loop: Instruction, computation: str, path) -> int | None:
        """Return how often a loop's body executes; None where that depends on data.

        The compiler may state it. Else the condition has to compare a counter, which starts at a
        constant and grows by a constant, with a constant.
        """
        stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
        if stated:
            return int(stated[1])
        condition, body = loop.attribute("condition"), loop.attribute("body")
        inside = (*path, (loop, computation))
        compared = self._compared(condition)
        if compared is None:
            return None
        direction, (left, right) = compared
        counter = self._through(condition, left)
        if counter.opcode != "get-tuple-element":
            return None
        limit = self._constant(condition, right, inside)
        start = self._element(computation, loop.operands[0], counter.index)
        first = None if start is None else self._constant(computation, start, path)
        step = self._grows(body, counter.index)
        if limit is None or first is None or not step or direction not in ("LT", "LE"):
            return None
        return max(0, -(-(limit + (direction == "LE") - first) // step))

    def _compared(self, condition: str):
        """Return the direction and the operands' names of the comparison that a condition is."""
        root = self.root(condition)
        if root.opcode == "fusion":
            inner = root.called[0]
            compare = self.root(inner)
            if compare.opcode != "compare":
                return None
            outer = []
            for name in compare.operands:
                given = self._through(inner, name)
                if given.opcode == "parameter":
                    outer.append(root.operands[int(given.argument)])
                elif given.opcode == "constant":
                    outer.append(f"{inner}/{given.name}")
                else:
                    return None
            return _direction(compare), outer
        return (_direction(root), root.operands) if root.opcode == "compare" else None

    def _grows(self, body: str, index: int) -> int | None:
        """Return the constant that a loop's body adds to an element that it carries."""
        name = self._element(body, self.root(body).name, index)
        added = None if name is None else self._through(body, name)
        inner = body
        if added is not None and added.opcode == "fusion":
            inner = added.called[0]
            added = self._through(inner, self.root(inner).name)
        if added is None or added.opcode != "add":
            return None
        values = [self._constant(inner, operand, ()) for operand in added.operands]
        return next((value for value in values if value is not None), None)

    def root(self, computation: str) -> Instruction:
        """Return the instruction whose results are the computation's."""
        return next(each for each in self.computations[computation].values() if each.is_root)

    def _through(self, computation: str, name: str) -> Instruction:
        """Follow copies and the like to the instruction that they copy."""
        inner, _, constant = name.rpartition("/")
        each = self.computations[inner or computation][constant]
        while each.opcode in ("bitcast", "copy", "convert", "copy-start", "copy-done", "reshape"):
            each = self.computations[inner or computation][each.operands[0]]
        return each

    def _constant(self, computation: str, name: str, path) -> int | None:
        """Return an integer that is known; `path` are the loops around the computation."""
        each = self._through(computation, name)
        if each.opcode == "constant":
            return int(each.argument) if re.fullmatch(r"-?\d+", each.argument) else None
        if each.opcode == "get-tuple-element" and path:
            loop, outside = path[-1]
            carried = self.computations[computation][each.operands[0]]
            if loop.opcode == "while" and carried.opcode == "parameter":
                if not self._kept(loop.attribute("body"), each.index):
                    return None
                start = self._element(outside, loop.operands[0], each.index)
                return None if start is None else self._constant(outside, start, path[:-1])
        return None

    def _kept(self, body: str, index: int) -> bool:
        """Whether a loop's body hands an element on as it is."""
        name = self._element(body, self.root(body).name, index)
        if name is None:
            return False
        each = self._through(body, name)
        if each.opcode != "get-tuple-element" or each.index != index:
            return False
        return self.computations[body][each.operands[0]].opcode == "parameter"

    def _element(self, computation: str, name: str, index: int) -> str | None:
        """Return the name of a tuple's element, where the tuple is made in the computation."""
        each = self.computations[computation][name]
        while each.opcode in ("optimization-barrier", "copy"):
            each = self.computations[computation][each.operands[0]]
        return each.operands[index] if each.opcode == "tuple" else None

    def origins(self, step: Step) -> set[str]:
        """Return the names of the program's arguments that a step's operands are moved from.

        Only what brings values to another place, type or order is followed: casts, copies, slices,
        gathers, fusions of these, and elements that loops hand on unchanged.
        """
        found = set()
        for operand in step.instruction.operands:
            found |= self._origins(step.computation, operand, step.path, None)
        return found

    def _origins(self, computation: str, name: str, path, index: int | None) -> set[str]:
        """Follow one value; `index` is the wanted element where it is a tuple."""
        each = self.computations[computation][name]
        if each.opcode == "parameter":
            if not path:
                return {each.op_name or each.name}
            caller, outside = path[-1]
            if caller.opcode == "while":
                if index is None or not self._kept(caller.attribute("body"), index):
                    return set()
                return self._origins(outside, caller.operands[0], path[:-1], index)
            return self._origins(outside, caller.operands[int(each.argument)], path[:-1], index)
        if each.opcode == "tuple":
            chosen = each.operands if index is None else (each.operands[index],)
            return set().union(*(self._origins(computation, n, path, None) for n in chosen))
        if each.opcode == "while":
            if index is None or not self._kept(each.attribute("body"), index):
                return set()
            return self._origins(computation, each.operands[0], path, index)
        if each.opcode == "get-tuple-element":
            return self._origins(computation, each.operands[0], path, each.index)
        if each.opcode in ("fusion", "call"):
            inner = each.called[0]
            deeper = (*path, (each, computation))
            return self._origins(inner, self.root(inner).name, deeper, index)
        if each.opcode not in _MOVING:
            return set()
        kept = index if each.opcode == "optimization-barrier" else None
        return self._origins(computation, each.operands[0], path, kept)


def _direction(compare: Instruction) -> str:
    found = re.search(r"\bdirection=(\w+)", compare.rest)
    return found[1] if found else ""


def parse(text: str) -> Program:
    """Read a compiled program's text.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry, current = {}, "", {}
    for line in text.splitlines():
        head = None if line.startswith(" ") else _HEAD.match(line)
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
            continue
        found = _INSTRUCTION.match(line)
        if found:
            each = _instruction(found[2], line[found.end() :], bool(found[1]))
            current[each.name] = each
    if not entry:
        raise ValueError("no entry computation: this is no text of a compiled program")
    return Program(computations, entry)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    """Read `TYPE OPCODE(OPERANDS), REST`."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, text = text[:end], text[end:].lstrip()
    opening = text.index("(")
    closing = _closing(text, opening)
    argument, rest = text[opening + 1 : closing], text[closing + 1 :]
    elements = _elements(kind[1:-1]) if kind.startswith("(") else [kind]
    parts = tuple(tuple(map(_array, _SHAPE.findall(part))) for part in elements)
    results = tuple(array for part in parts for array in part)
    operands = () if text.startswith("constant(") else tuple(_NAME.findall(argument))
    return Instruction(name, text[:opening], results, parts, operands, argument, rest, is_root)


def _array(found: tuple[str, str]) -> Array:
    return Array(found[0], tuple(int(size) for size in found[1].split(",") if size))


def _closing(text: str, opening: int) -> int:
    """Return the place of the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _elements(text: str) -> list[str]:
    """Split a tuple's types at its outer commas."""
    found, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            found.append(text[start:place])
            start = place + 1
    return [*found, text[start:]]
