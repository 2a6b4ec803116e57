"""The steps of a job, compiled from shapes alone: what each holds, computes and sends.

1. describe the state of each step by shapes and shardings, without any weights
2. trace each step for its FLOPs and compile it for its memory, with the job's own functions
3. read what an accelerator's compiler made of it (`compilers.findings`)

Parameters, optimizer state and caches take the same memory on any device. On fake devices
activations are the temporary memory of XLA's CPU program, an estimate for an accelerator. XLA
scatters in f32 on a CPU, and the sampler's programs scatter into the whole cache. So there these
programs are compiled in f32, and the cache is counted in its own type.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from autollm_jax.agent.distillation import PackedRows, imitation_loss
from autollm_jax.compilers.findings import Dimensions, Findings, find, weight_shapes
from autollm_jax.errors import UserError, one_line
from autollm_jax.job.fields import split_names
from autollm_jax.job.job import Job
from autollm_jax.models import lora, transformer
from autollm_jax.models.decoding import for_decoding
from autollm_jax.rl import sampler
from autollm_jax.rl.batches import Decisions, UpdateBatch, scored_places
from autollm_jax.rl.grammar import LEAST_EDGES
from autollm_jax.rl.logprobs import Allowed
from autollm_jax.rl.objective import jit_reference, jit_update, reference_of
from autollm_jax.sharding.rules import even_rows, tree_shardings
from autollm_jax.text.symbols import PANELS
from autollm_jax.training import flops
from autollm_jax.training.state import abstract_state, state_shardings
from autollm_jax.training.step import jit_train_step

COLUMNS = ("parameters", "optimizer", "other", "cache", "activations")
PLAYING = ("append", "decode", "grow")


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Memory and FLOPs of one step; memory is in bytes on the fullest device.

    name: stage and step.
    rows: rows of the batch.
    tokens: tokens per row.
    parameters: all parameters of the model.
    optimizer: the optimizer's state.
    other: further parameters: the initial ones, those of the reference, the layers for decoding.
    cache: keys and values.
    activations: temporary arrays of the program, and its batch.
    flops: FLOPs of all devices together; a decoding step counts a row's token and drafts.
    useful_flops: those that a backward pass does not compute a second time.
    findings: what an accelerator's compiler says of the step; None on fake devices.
    """

    name: str
    rows: int
    tokens: int
    parameters: int
    optimizer: int
    other: int
    cache: int
    activations: int
    flops: int
    useful_flops: int
    findings: Findings | None = None

    @property
    def total(self) -> int:
        """Bytes of the step on the fullest device."""
        return sum(getattr(self, name) for name in COLUMNS)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step.

    bytes: memory on one device, arguments included.
    temporary_bytes: of these, what is neither argument nor result.
    flops: FLOPs of all devices.
    text: the program, of an accelerator; "" on fake devices.
    """

    bytes: int
    temporary_bytes: int
    flops: int
    text: str = ""


def planned_steps(job: Job, evaluated_rows: int) -> Iterator[StepPlan]:
    """Yield the plan of each step of `config.plan.steps`, in the order of the stages.

    Raises:
      UserError: the job has no such step, or the compiler has no room for one.
    """
    steps = dict(_steps(job, evaluated_rows))
    wanted = split_names(job.config.plan.steps) or steps
    for name in wanted:
        if name not in steps:
            raise UserError(
                f"config.plan.steps={job.config.plan.steps}: this job has no {name}; it has "
                + ", ".join(steps)
            )
    for name, make in steps.items():
        if name in wanted:
            yield _within_memory(name, make)


def _within_memory(name: str, make: Callable[[], StepPlan]) -> StepPlan:
    """Make the plan of a step.

    Raises:
      UserError: the compiler has no room for it.
    """
    try:
        return make()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"plan: {name}: the compiler has no room for it: {one_line(error)[:300]}; raise "
            "config.mesh.fsdp or .tensor, or the stage's microbatches"
        ) from error


def _steps(job: Job, evaluated_rows: int) -> Iterator[tuple[str, Callable[[], StepPlan]]]:
    """Yield the name of each step of the job, and what compiles it."""
    config, model = job.config, job.model
    params = _abstract_parameters(model, job.mesh)
    trained = lora.split(model, params)[1]
    # A second copy of the trained parameters is in memory: the published ones.
    published = {"other": _bytes(trained) if config.policy.weights else 0}
    if config.distill.steps:
        shape = dataclasses.replace(model, dtype=config.distill.dtype)
        optimizer, pieces = job.optimizer(config.distill), config.distill.microbatches

        def distilling(shape):
            loss_fn, axes = functools.partial(imitation_loss, shape), lora.logical_axes(shape)
            init = functools.partial(lora.init, shape)
            shardings = state_shardings(init, axes, optimizer, job.mesh)
            return jit_train_step(loss_fn, optimizer, shardings, job.mesh, pieces)

        rows = even_rows(config.distill.batch_rows, job.mesh, pieces)
        length = config.distill.row_length
        places = _places(job, rows, length, max(length // config.policy.context, 1))
        batch = _batch(PackedRows, rows, length, chances=None, place_NM=places)
        yield _update(job, job.mesh, "distill", distilling, shape, optimizer, batch, **published)
    if config.grpo.steps:
        yield from _grpo(job)
    play = Play("evaluate", evaluated_rows, config.evaluation.temperature, job.player_mesh)
    yield from _sampling(job, play, params, **published)


def _grpo(job: Job) -> Iterator[tuple[str, Callable[[], StepPlan]]]:
    """Name the steps of GRPO, on the meshes that they run on."""
    settings, model, (players, mesh) = job.config.grpo, job.model, job.grpo_meshes
    hp, optimizer = job.grpo_hyperparameters(), job.optimizer(settings)
    params = _abstract_parameters(model, mesh)
    reference = _as_made(functools.partial(reference_of, model), params)
    needed = lora.split(model, reference)[1] if hp.needs_reference else {}
    held = {"other": _bytes(needed)}

    def improving(shape):
        return jit_update(shape, hp, optimizer, mesh, settings.microbatches)

    rows = even_rows(settings.minibatch_rows, mesh, settings.microbatches)
    batch = _grpo_batch(job, rows)
    yield _update(job, mesh, "grpo", improving, model, optimizer, batch, **held)
    held["optimizer"] = _bytes(_state(model, optimizer, mesh).opt_state)
    batch = _grpo_batch(job, even_rows(settings.minibatch_rows, mesh))
    scored = functools.partial(_scoring, job, mesh, hp, batch, params)
    if hp.needs_reference:
        yield "grpo reference", functools.partial(scored, "reference", reference, **held)
    if hp.importance_cap:
        yield "grpo weights", functools.partial(scored, "weights", params, **held)
    if settings.off_policy_steps:  # the players hold what they play with alone
        held, params = {"other": 0}, _abstract_parameters(model, players)
    play = Play("grpo", job.rollout_rows, settings.temperature, players)
    yield from _sampling(job, play, params, **held)


def _state(model, optimizer, mesh: Mesh):
    """Return the state of a stage that trains, as shapes."""
    init, axes = functools.partial(lora.init, model), lora.logical_axes(model)
    return abstract_state(init, axes, optimizer, mesh)


def _update(job: Job, mesh: Mesh, stage: str, made: Callable, model, optimizer, batch, **held):
    """Name and plan the optimizer step of a stage.

    Args:
      made: returns the stage's own jitted function for a model's shape.
    """
    name = f"{stage} update"

    def make():
        params = _abstract_parameters(job.model, mesh)
        state, frozen = _state(job.model, optimizer, mesh), lora.split(job.model, params)[0]
        compiled = _compile(mesh, made(model), state, batch, frozen)
        held["optimizer"] = moments = _bytes(state.opt_state)
        useful = compiled.flops
        if compiled.text and model.remat != "none":
            kept = made(dataclasses.replace(model, remat="none"))
            with jax.set_mesh(mesh):
                useful = flops.count(kept.trace(state, batch, frozen).jaxpr)
        read = _bytes(params) + moments
        plan = _planned(job, mesh, name, batch, compiled, params, read=read, **held)
        return dataclasses.replace(plan, useful_flops=useful)

    return name, make


def _scoring(job: Job, mesh: Mesh, hp, batch, params, name: str, scored, **held) -> StepPlan:
    """Plan the pass that scores a minibatch's tokens under some parameters."""
    compiled = _compile(mesh, jit_reference(job.model, hp, mesh), scored, batch)
    read = _bytes(scored)
    return _planned(job, mesh, f"grpo {name}", batch, compiled, params, read=read, **held)


@dataclasses.dataclass(frozen=True)
class Play:
    """A stage that plays: how many rows, at which temperature, and on which devices."""

    stage: str
    rows: int
    temperature: float
    mesh: Mesh


def _sampling(job: Job, play: Play, params, **held):
    """Name and plan the programs of a turn at full context: append, decode, growth of the cache.

    Memory of constrained-decoding grammars is not counted: it depends on the tables.
    """
    stage, rows, mesh, model = play.stage, play.rows, play.mesh, job.model
    sizes = job.play(play.temperature).sampler
    wide = model
    if _is_fake(mesh):
        wide = dataclasses.replace(model, dtype="float32", cache_dtype="float32")
    laid_out = functools.cache(functools.partial(_laid_out, model, wide, params, mesh))

    def conversation(model, capacity):
        filled = dataclasses.replace(sizes, cache_block=capacity)
        return sampler.abstract_state(model, filled, rows, mesh)

    def planned(name, tokens, compiled, read):
        columns = held | {"cache": cache, "other": held["other"] + laid_out()[1]}
        return _planned(
            job, mesh, f"{stage} {name}", chunk_BC[:, :tokens], compiled, params, laid_out()[0],
            read=read, **columns,
        )  # fmt: skip

    full = conversation(wide, sizes.context)
    cache, read = _bytes(conversation(model, sizes.context).cache), _bytes(full.cache)
    each_B, chunk_BC = np.zeros(rows, np.int32), np.zeros((rows, sizes.chunk_sizes[-1]), np.int32)

    def append():
        compiled = _compile(mesh, sampler.jit_append, wide, laid_out()[0], full, chunk_BC, each_B)
        return planned("append", None, compiled, read + _bytes(laid_out()[0]))

    def decode():
        taking = sampler.Taking(each_B > 0, each_B)
        compiled = _compile(
            mesh, sampler.jit_decode, wide, laid_out()[0], full, jax.random.key(0), taking, 0, 1.0,
            greedy=play.temperature == 0, drafts=job.config.rollout.drafts,
        )  # fmt: skip
        return planned("decode", 1, compiled, read + _bytes(laid_out()[0]))

    def grow():
        shorter = conversation(model, sizes.capacities[-2])
        compiled = _compile(mesh, sampler.jit_grow, shorter, sizes.context)
        return planned("grow", 0, compiled, cache)  # it makes the cache, and reads no parameters

    yield f"{stage} append", append
    yield f"{stage} decode", decode
    if len(sizes.capacities) > 1:
        yield f"{stage} grow", grow


def _laid_out(model, wide, params, mesh: Mesh) -> tuple[dict, int]:
    """Lay the parameters out for decoding, as shapes.

    Args:
      model: the policy's shape.
      wide: the same shape in f32, which is compiled.

    Returns:
      The layout of `wide`, and the bytes per device of what is copied in the layout of `model`: the
      layers, and on a mesh the tables too.
    """
    with jax.set_mesh(mesh):
        shardings = for_decoding.lower(wide, params).compile().output_shardings

    def shapes(config):
        made = jax.eval_shape(functools.partial(for_decoding, config), params)
        return jax.tree.map(
            lambda x, split: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), made, shardings
        )

    copied = shapes(model)
    return shapes(wide), _bytes(copied if mesh.size > 1 else copied["layers"])


def _planned(
    job: Job, mesh: Mesh, name: str, batch, compiled: Compiled, params, laid_out=None, *,
    read: int, **held,
):  # fmt: skip
    """Make the plan of a step.

    Activations are the bytes of the program, less the `read` ones, which other columns count. A
    step of play reads parameters that are `laid_out` for it.
    """
    rows, tokens = jax.tree.leaves(batch)[0].shape[:2]
    columns = {"optimizer": 0, "other": 0, "cache": 0} | held
    activations = max(compiled.bytes - read, 0)
    findings = None
    if compiled.text:
        playing, V = name.endswith(PLAYING), job.model.vocab_size
        # Play splits the vocabulary over tensor, and training over all devices of a replica.
        shards = {1, mesh.shape["tensor"], mesh.shape["fsdp"] * mesh.shape["tensor"]}
        dimensions = Dimensions(
            job.config.policy.context if playing else tokens,
            -(-rows // (mesh.shape["data"] * mesh.shape["fsdp"])),
            frozenset({job.model.width, job.model.heads * job.model.head_dim}),
            frozenset(-(-V // parts) for parts in shards),
            weight_shapes(params) | weight_shapes(laid_out),
        )
        findings = find(compiled.text, compiled.temporary_bytes, dimensions)
    return StepPlan(
        name, rows, tokens, _bytes(params), activations=activations, flops=compiled.flops,
        useful_flops=compiled.flops, findings=findings, **columns,
    )  # fmt: skip


def _is_fake(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def _compile(mesh, jitted, *arguments, **static) -> Compiled:
    """Compile a step for its mesh."""
    with jax.set_mesh(mesh):
        traced = jitted.trace(*arguments, **static)
        compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return Compiled(
        memory.argument_size_in_bytes + made,
        memory.temp_size_in_bytes,
        flops.count(traced.jaxpr),
        "" if _is_fake(mesh) else compiled.as_text(),
    )


def _abstract_parameters(model, mesh: Mesh) -> dict:
    """Return the whole policy as shapes and shardings."""
    shapes = transformer.parameter_shapes(model)
    shardings = tree_shardings(transformer.logical_axes(model), shapes, mesh)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _as_made(make: Callable, params) -> dict:
    """Return what a function makes of parameters, as shapes that are laid out as they are."""
    return jax.tree.map(
        lambda made, x: jax.ShapeDtypeStruct(made.shape, made.dtype, sharding=x.sharding),
        jax.eval_shape(make, params),
        params,
    )


def _grpo_batch(job: Job, rows: int) -> UpdateBatch:
    """Make the shapes of GRPO's batch: whole contexts, nothing shared, turns of sampled tokens."""
    config, T, P = job.config, job.config.policy.context, len(PANELS)
    allowed = decisions = None

    def shape(kind, *sizes):
        return jax.ShapeDtypeStruct((rows, *sizes), kind)

    if config.evaluation.constrained:
        edges = shape(np.int32, T, LEAST_EDGES)
        allowed = Allowed(shape(np.bool_, T), edges, shape(np.bool_, job.model.vocab_size))
    if config.grpo.members == "enumerated":
        places, numbers = shape(np.int32, config.gym.budget), (np.float32, config.gym.budget, P)
        decisions = Decisions(places, shape(*numbers), shape(*numbers), shape(np.int32, P))
    turns = shape(np.int32, T) if config.grpo.ratio == "sequence" else None
    weights = shape(np.float32, T) if config.grpo.importance_cap else None
    places = _places(job, rows, T, 1)
    more = {"allowed": allowed, "decisions": decisions, "turns_BT": turns, "weights_BT": weights}
    return _batch(UpdateBatch, rows, T, segments_BT=None, place_BM=places, **more)


def _places(job: Job, rows: int, T: int, conversations: int) -> jax.ShapeDtypeStruct | None:
    """Make the shape of the scored tokens' places: as many as the turns of conversations have."""
    place_1M = scored_places(np.zeros((1, T), bool), conversations * job.most_sampled)
    return None if place_1M is None else jax.ShapeDtypeStruct((rows, *place_1M.shape[1:]), np.int32)


# Types of a batch's fields; all other fields (token ids, segments, positions) are i32.
_DTYPES = {"mask": np.bool_, "loss_mask": np.bool_} | dict.fromkeys(
    ("behaviour", "reference", "advantages"), np.float32
)


def _batch(kind, rows: int, tokens: int, **others):
    """Make the shapes of a batch whose fields are [rows, tokens], but for the others given."""
    return kind(
        **{
            field.name: jax.ShapeDtypeStruct(
                (rows, tokens), _DTYPES.get(field.name.rpartition("_")[0], np.int32)
            )
            for field in dataclasses.fields(kind)
            if field.name not in others and not field.metadata.get("static")
        },
        **others,
    )


def _bytes(tree) -> int:
    """Return the bytes on one device of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
