"""The reader of compiled programs, on the committed texts that `write_programs.py` made."""

from pathlib import Path

import pytest

from autollm_jax.compilers.hlo import Array, parse

PROGRAMS = Path(__file__).with_name("programs")
CHIPS = ("v5e", "h100")


def program(name, chip):
    return parse((PROGRAMS / f"{name}_{chip}.txt").read_text())


def loop_of(program):
    return next(step for step in program.executed() if step.instruction.opcode == "while")


def collectives(program):
    return [
        step
        for step in program.executed()
        if step.instruction.opcode.removesuffix("-start") in ("all-gather", "all-reduce")
    ]


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(("name", "trips"), [("loop", 5), ("sums", 3), ("tokens", None)])
def test_the_passes_of_a_loop(name, trips, chip):
    """XLA for GPU states them; for TPU they follow from the condition."""
    found = program(name, chip)
    step = loop_of(found)
    assert ("known_trip_count" in step.instruction.rest) == (chip == "h100" and trips is not None)
    assert found.trips(step.instruction, step.computation, step.path) == trips


@pytest.mark.parametrize("chip", CHIPS)
def test_what_is_in_a_loop_executes_as_often_as_the_loop_does(chip):
    inside = [step for step in collectives(program("sums", chip)) if step.path]
    outside = [step for step in collectives(program("sums", chip)) if not step.path]
    assert [step.times for step in inside] == [3, 3]
    assert [step.times for step in outside] == [1]
    assert outside[0].instruction.opcode.startswith("all-reduce")


@pytest.mark.parametrize("chip", CHIPS)
def test_a_loop_of_unknown_length_counts_one_pass_and_says_so(chip):
    steps = collectives(program("tokens", chip))
    assert [(step.times, step.unknown_loop) for step in steps] == [(1, True), (1, True), (1, False)]
    assert not any(step.unknown_loop for step in collectives(program("loop", chip)))


@pytest.mark.parametrize("chip", CHIPS)
def test_a_gathered_parameter_is_known_by_its_argument(chip):
    """The activation gathered beside it comes from an argument too, but only in the first pass."""
    found = program("tokens", chip)
    origins = {
        step.instruction.results[-1].dims: found.origins(step) for step in collectives(found)
    }
    assert origins == {(128, 1024): set(), (1024, 512): {"params"}, (): set()}


@pytest.mark.parametrize("chip", CHIPS)
def test_a_parameter_gathered_over_one_axis_and_then_another_is_one_still(chip):
    found = program("sums", chip)
    inside = [found.origins(step) for step in collectives(found) if step.path]
    assert inside == [{"params"}, {"params"}]


def test_what_is_inside_a_fusion_is_not_stored():
    found = program("loop", "v5e")
    tanh = [step for step in found.executed() if step.instruction.opcode == "tanh"]
    assert [(step.stored, step.times) for step in tanh] == [(False, 5)]
    fusions = [s for s in found.executed() if "tanh_fusion" in s.instruction.name]
    assert [(step.stored, step.instruction.cycles) for step in fusions] == [(True, 3613)]


SMALL = """HloModule small

%inner (p: f32[8]) -> f32[16] {
  %p = f32[8]{0} parameter(0)
  ROOT %gather = f32[16]{0} all-gather(%p), dimensions={0}
}

%called (p.1: f32[8]) -> f32[16] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %sum = f32[16]{0} all-to-all(%p.1), dimensions={0}
}

%body (carry: (s32[], f32[16])) -> (s32[], f32[16]) {
  %carry = (s32[], f32[16]{0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %x = f32[16]{0} get-tuple-element(%carry), index=1
  ROOT %both = (s32[], f32[16]{0}) tuple(%next, %x)
}

%condition (carry.1: (s32[], f32[16])) -> pred[] {
  %carry.1 = (s32[], f32[16]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carry.1), index=0
  %end = s32[] constant(DIRECTED)
  ROOT %less = pred[] compare(%i.1, %end), direction=LE
}

ENTRY %main (a: f32[8], b: pred[3,5]) -> f32[16] {
  %a = f32[8]{0:T(8,128)S(1)} parameter(0), metadata={op_name="state.params[\\'a\\']"}
  %b = pred[3,5]{1,0} parameter(1)
  %async-fusion = f32[16]{0} fusion(%a), kind=kCustom, calls=%inner
  %begun = ((f32[8]{0}), f32[16]{0}, u32[]{:S(2)}) async-start(%a), calls=%called
  %done = f32[16]{0} async-done(%begun), calls=%called
  %one = s32[] constant(1)
  %first = (s32[], f32[16]{0}) tuple(%one, %done)
  %loop = (s32[], f32[16]{0}) while(%first), condition=%condition, body=%body
  ROOT %last = f32[16]{0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(("end", "trips"), [(5, 3), (6, 3), (7, 4), (0, 0)])
def test_a_counter_that_starts_at_one_and_grows_by_two(end, trips):
    found = parse(SMALL.replace("DIRECTED", str(end)))
    step = loop_of(found)
    assert found.trips(step.instruction, step.computation, step.path) == trips


def test_asynchronous_calls_and_fusions_are_known_and_followed_to_an_argument():
    found = parse(SMALL)
    steps = [s for s in found.executed() if s.instruction.opcode in ("all-gather", "all-to-all")]
    assert [(step.asynchronous, step.stored) for step in steps] == [(True, False), (True, True)]
    assert [found.origins(step) for step in steps] == [{"state.params[\\'a\\']"}] * 2
    begun = found.computations["main"]["begun"]
    assert begun.parts == ((Array("f32", (8,)),), (Array("f32", (16,)),), (Array("u32", ()),))


def test_bytes_of_arrays():
    assert Array("bf16", (3, 5)).bytes == 30 and Array("pred", (3, 5)).bytes == 15
    assert Array("f8e4m3fn", (4,)).bytes == 4 and Array("s4", (8,)).bytes == 4
    assert Array("token", ()).bytes == 0


def test_a_text_that_is_none():
    with pytest.raises(ValueError, match="no entry computation"):
        parse("nothing")
