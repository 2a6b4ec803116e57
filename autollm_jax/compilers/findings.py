"""What the text of a compiled step says of its communication, memory and time.

All of it is the compiler's plan for one device, and nothing was measured. Cycles are the TPU
compiler's estimates; they leave out collectives and hand-written kernels (which are counted apart),
and mean nothing below the default optimisation level. GPU programs have none.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable

import jax
import numpy as np

from autollm_jax.compilers.hlo import Array, Program, Step, parse

COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
KERNELS = (
    "tpu_custom_call",
    "__gpu$xla.gpu.triton",
    "triton_kernel_call",
    "mosaic_gpu",
    "__cudnn$",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """The collectives of one kind that a step executes on a device.

    count: executions; a loop's count as often as it runs.
    bytes: of what a device hands in or what it gets, the larger, of all executions.
    asynchronous: executions that other work may overlap.
    asynchronous_bytes: their bytes.
    """

    kind: str
    count: int
    bytes: int
    asynchronous: int
    asynchronous_bytes: int


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """What the arrays of a step are recognised by.

    tokens: tokens of a row; an array T x T has two dimensions between that less 1 and the next
      multiple of 128.
    rows: rows of the batch on one device.
    widths: sizes of a token's activations: of the model, of all its heads.
    vocabulary: sizes of the vocabulary, whole and on one device.
    weights: shapes of parameters, as `weight_shapes` makes them. An array of such a shape counts as
      a parameter, a gradient or a moment, and not as an activation.
    """

    tokens: int
    rows: int
    widths: frozenset[int]
    vocabulary: frozenset[int]
    weights: frozenset[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a compiler says of a step, on one device.

    temporary_bytes: memory beside arguments and results.
    collectives: one entry a kind.
    loop_parameter_count, loop_parameter_bytes: collectives that move parameters inside a loop of
      unknown length, in one pass: what decoding a token fetches again.
    f32_activation_bytes, f32_activation: the largest f32 array that has no parameter's shape.
    logits_bytes: the largest array over the vocabulary, but for embeddings.
    score_bytes, scores: the largest array with T x T entries; 0 and "" where there is none.
    cycles: the TPU compiler's estimate; loops of unknown length count one pass; 0 where none.
    loop_cycles: those inside loops of unknown length.
    kernels: executions of hand-written kernels, which no cycles are estimated for.
    """

    temporary_bytes: int
    collectives: tuple[Collective, ...]
    loop_parameter_count: int
    loop_parameter_bytes: int
    f32_activation_bytes: int
    f32_activation: str
    logits_bytes: int
    score_bytes: int
    scores: str
    cycles: int
    loop_cycles: int
    kernels: int

    @property
    def collective_bytes(self) -> int:
        """Bytes of all collectives."""
        return sum(each.bytes for each in self.collectives)


def find(text: str, temporary_bytes: int, dimensions: Dimensions) -> Findings:
    """Read the text of a step's program, `compiled.as_text()`."""
    program = parse(text)
    steps = list(program.executed())
    moved: dict[str, list[tuple[int, int, bool]]] = {}
    again, known = [], set()
    for step in steps:
        kind = step.instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES or _identity(step) in known:
            continue
        known.add(_identity(step))
        size = _size(program, step)
        moved.setdefault(kind, []).append((step.times, step.times * size, _overlaps(step)))
        if step.unknown_loop and any("params" in name for name in program.origins(step)):
            again.append((step.times, step.times * size))
    # A parameter of the program is no array that the program makes.
    made = {
        array
        for step in steps
        if step.stored and step.instruction.opcode != "parameter"
        for array in step.instruction.results
    }
    activations = [array for array in made if _squeezed(array.dims) not in dimensions.weights]
    f32 = _largest(array for array in activations if array.kind == "f32")
    logits = _largest(
        array for array in activations if dimensions.vocabulary.intersection(array.dims)
    )
    scores = _largest(array for array in activations if _is_square(array, dimensions))
    timed = [step for step in steps if step.stored]
    return Findings(
        temporary_bytes=temporary_bytes,
        collectives=tuple(_summed(kind, moved[kind]) for kind in COLLECTIVES if kind in moved),
        loop_parameter_count=sum(count for count, _ in again),
        loop_parameter_bytes=sum(size for _, size in again),
        f32_activation_bytes=f32.bytes if f32 else 0,
        f32_activation=_shown(f32),
        logits_bytes=logits.bytes if logits else 0,
        score_bytes=scores.bytes if scores else 0,
        scores=_shown(scores),
        cycles=sum(step.times * step.instruction.cycles for step in timed),
        loop_cycles=sum(
            step.times * step.instruction.cycles for step in timed if step.unknown_loop
        ),
        kernels=sum(step.times for step in steps if _is_kernel(step)),
    )


def weight_shapes(tree) -> frozenset[tuple[int, ...]]:
    """Return the shapes that parameters, their gradients and their moments have on a device.

    A dimension is whole or sharded, neighbours may be joined (heads and their width), the layers'
    axis may be cut off; ones are left out and the order is dropped.

    Args:
      tree: shapes with shardings (`ShapeDtypeStruct`).
    """
    found = set()
    for leaf in set(jax.tree.leaves(tree)):
        shard = leaf.sharding.shard_shape(leaf.shape)
        choices = [sorted({whole, part}) for whole, part in zip(leaf.shape, shard, strict=True)]
        for dims in itertools.product(*choices):
            for start in range(min(2, len(dims))):
                found |= {_squeezed(joined) for joined in _joined(dims[start:])}
    return frozenset(found)


def _joined(dims: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    """Yield the shapes that joining neighbouring dimensions makes."""
    for cuts in itertools.product((False, True), repeat=len(dims) - 1):
        edges = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), len(dims)]
        yield tuple(math.prod(dims[a:b]) for a, b in itertools.pairwise(edges))


def _squeezed(dims) -> tuple[int, ...]:
    return tuple(sorted(size for size in dims if size > 1))


def _largest(arrays: Iterable[Array]) -> Array | None:
    return max(arrays, key=lambda array: (array.bytes, array.dims), default=None)


def _shown(array: Array | None) -> str:
    return f"{array.kind}[{','.join(map(str, array.dims))}]" if array else ""


def _is_square(array: Array, dimensions: Dimensions) -> bool:
    tokens = dimensions.tokens
    alike = range(max(tokens - 1, 2), -(-tokens // 128) * 128 + 1)
    if sum(size in alike for size in array.dims) < 2:
        return False
    # A width may be such a number by chance. Scores have as many entries for each head.
    by_chance = any(width in alike for width in dimensions.widths)
    return not by_chance or math.prod(array.dims) > dimensions.rows * alike[-1] ** 2


def _identity(step: Step):
    """Return the same value for all mentions of one collective, and for no other.

    The TPU compiler lets several fusions carry a collective forward while they compute. Each of
    them mentions it, with the same channel.
    """
    channel = re.search(r"\bchannel_id=(\d+)", step.instruction.rest)
    fused = bool(step.path) and step.path[-1][0].opcode == "fusion"
    if not fused or channel is None:
        return step.computation, step.instruction.name, step.path
    return step.path[-1][1], channel[1], step.path[:-1]


def _size(program: Program, step: Step) -> int:
    """Return the bytes of one execution: what goes in or what comes out, the larger."""
    each, inside = step.instruction, program.computations[step.computation]
    given = sum(array.bytes for name in each.operands for array in inside[name].results)
    got = each.results
    if each.opcode in ("all-gather-start", "collective-permute-start"):  # (operands, results, ...)
        got = each.parts[1]
    return max(given, sum(array.bytes for array in got))


def _overlaps(step: Step) -> bool:
    each = step.instruction
    return step.asynchronous or (
        each.opcode.endswith("-start") and '"is_sync":true' not in each.rest
    )


def _summed(kind: str, executions: list[tuple[int, int, bool]]) -> Collective:
    counts, sizes, overlapped = (np.array(column) for column in zip(*executions, strict=True))
    return Collective(
        kind, int(counts.sum()), int(sizes.sum()),
        int(counts[overlapped].sum()), int(sizes[overlapped].sum()),
    )  # fmt: skip


def _is_kernel(step: Step) -> bool:
    each = step.instruction
    return each.opcode == "custom-call" and any(
        f'custom_call_target="{name}' in each.rest for name in KERNELS
    )
