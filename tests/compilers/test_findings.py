"""What a program's text says, against arithmetic on the small programs."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from autollm_jax.compilers.findings import Dimensions, find, weight_shapes
from autollm_jax.sharding.mesh import MeshShape, make_mesh

PROGRAMS = Path(__file__).with_name("programs")
NOTHING = frozenset()
NONE = Dimensions(tokens=10_000, rows=1, widths=NOTHING, vocabulary=NOTHING, weights=NOTHING)
BF16, WIDTH, ROWS = 2, 1024, 128  # the programs' rows are split in four


def found(name, chip, dimensions=NONE):
    return find((PROGRAMS / f"{name}_{chip}.txt").read_text(), 0, dimensions)


@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_bytes_of_collectives_are_those_of_all_executions(chip):
    gathered, summed = found("sums", chip).collectives
    # The matrix is gathered over one axis and then whole, in each of three microbatches.
    assert (gathered.kind, gathered.count) == ("all-gather", 2 * 3)
    assert gathered.bytes == 3 * BF16 * (WIDTH * WIDTH // 2 + WIDTH * WIDTH)
    assert (summed.kind, summed.count, summed.bytes) == ("all-reduce", 1, BF16 * WIDTH * WIDTH)


def test_pairs_of_start_and_done_count_once_and_are_asynchronous_where_something_is_between():
    """XLA for GPU says so of each pair; XLA for TPU leaves others in one piece."""
    text = (PROGRAMS / "loop_h100.txt").read_text()
    assert text.count("all-gather-start(") == text.count('"is_sync":true') == 2
    assert [(c.count, c.asynchronous) for c in find(text, 0, NONE).collectives] == [(10, 0)]
    first = text.replace('"is_sync":true', '"is_sync":false', 1)
    (gathered,) = find(first, 0, NONE).collectives
    assert (gathered.count, gathered.asynchronous) == (10, 5)
    assert 0 < gathered.asynchronous_bytes < gathered.bytes
    assert [(c.count, c.asynchronous) for c in found("loop", "v5e").collectives] == [(10, 0)]


@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_parameters_that_a_loop_of_unknown_length_moves(chip):
    moved = found("tokens", chip)
    assert moved.loop_parameter_count == 1
    assert moved.loop_parameter_bytes == BF16 * WIDTH * WIDTH // 2
    assert found("loop", chip).loop_parameter_count == 0  # five passes, known before


def test_cycles_are_those_of_all_passes():
    once, loop = found("tokens", "v5e"), found("loop", "v5e")
    assert 0 < once.loop_cycles < once.cycles
    # The same product, once and five times.
    assert loop.cycles - once.cycles > 3.5 * once.loop_cycles
    assert found("loop", "h100").cycles == 0


def test_the_largest_arrays_leave_parameters_out():
    seen = found("sums", "h100")  # a product in eight parts, which are summed
    assert seen.f32_activation == "f32[8,128,1024]"
    assert seen.f32_activation_bytes == 4 * 8 * ROWS * WIDTH
    weights = dataclasses.replace(NONE, weights=frozenset({(8, ROWS, WIDTH)}))
    assert found("sums", "h100", weights).f32_activation_bytes < seen.f32_activation_bytes


def test_logits_and_scores_are_known_by_their_sizes():
    logits = dataclasses.replace(
        NONE, vocabulary=frozenset({512}), weights=frozenset({(256, 512), (512, 1024)})
    )
    assert found("loop", "v5e", logits).logits_bytes == BF16 * ROWS * 512
    # An array [128, 1024] has T x T entries for no T; [1024, 1024] has for 1,024 and 1,025 tokens.
    for tokens, scores in ((1025, "bf16[1024,1024]"), (1000, "bf16[1024,1024]"), (512, "")):
        assert found("sums", "v5e", dataclasses.replace(NONE, tokens=tokens)).scores == scores
    # Where a width is 1,024 too, the array may be one row's activations; or two heads' scores.
    width = dataclasses.replace(NONE, tokens=1024, widths=frozenset({1024}))
    assert found("sums", "v5e", width).scores == ""
    text = (PROGRAMS / "sums_v5e.txt").read_text().replace("bf16[1024,1024]", "bf16[2,1024,1024]")
    assert find(text, 0, width).scores == "bf16[2,1024,1024]"
    assert find(text, 0, dataclasses.replace(width, rows=2)).scores == ""


def test_shapes_of_a_parameter_whole_sharded_joined_and_of_one_layer():
    mesh = make_mesh(MeshShape(1, 2, 4))
    sharding = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor", None))
    leaf = jax.ShapeDtypeStruct((3, 10, 8, 5), np.float32, sharding=sharding)
    shapes = weight_shapes({"query": leaf})
    for dims in ((3, 5, 2, 5), (3, 10, 8, 5), (10, 2, 5), (10, 10), (5, 40), (3, 40, 10)):
        assert tuple(sorted(dims)) in shapes
    assert (3, 4, 10) not in shapes


CARRIED = """
HloModule carried, is_scheduled=true

%begun (a: bf16[8,128]) -> (bf16[8,128], bf16[32,128]) {
  %a = bf16[8,128] parameter(0)
  %all-gather.1 = bf16[32,128] all-gather(%a), channel_id=7, dimensions={0}
  ROOT %begin = (bf16[8,128], bf16[32,128]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%carried (b: bf16[8,128]) -> (bf16[8,128], bf16[32,128]) {
  %b = bf16[8,128] parameter(0)
  %sum = bf16[8,128] add(%b, %b)
  %all-gather.2 = bf16[32,128] all-gather(%b), channel_id=7, dimensions={0}
  ROOT %on = (bf16[8,128], bf16[32,128]) tuple(%sum, %all-gather.2)
}

ENTRY %main (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128] parameter(0)
  %fusion.1 = (bf16[8,128], bf16[32,128]) fusion(%p), kind=kCustom, calls=%begun
  %fusion.2 = (bf16[8,128], bf16[32,128]) fusion(%p), kind=kOutput, calls=%carried
  %other = bf16[32,128] all-gather(%p), channel_id=8, dimensions={0}
  ROOT %out = bf16[8,128] get-tuple-element(%fusion.2), index=0
}
"""  # noqa: E501


def test_a_collective_that_several_fusions_carry_on_counts_once():
    (gathered,) = find(CARRIED, 0, NONE).collectives
    assert (gathered.count, gathered.bytes) == (2, 2 * BF16 * 32 * 128)
    apart = CARRIED.replace("all-gather(%b), channel_id=7", "all-gather(%b), channel_id=9")
    assert find(apart, 0, NONE).collectives[0].count == 3
