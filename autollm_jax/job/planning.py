"""Plans a job's memory and FLOPs without its devices: compiles each step from shapes alone.

1. split the CPU into as many JAX devices as the config's mesh has
2. describe the state of each step by shapes and shardings, without any weights
3. trace each step for its FLOPs and compile it for its memory, with the job's own functions
4. print a table, and write it to `plan.json`

Parameters, optimizer state and caches take the same memory on any device. Activations are the
temporary memory of XLA's CPU program, an estimate for an accelerator. XLA scatters in f32 on a CPU,
and the sampler's programs scatter into the whole cache. So these programs are compiled in f32, and
the cache is counted in its own type.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from autollm_jax.agent.distillation import PackedRows, imitation_loss
from autollm_jax.errors import UserError
from autollm_jax.files import write_json_atomic
from autollm_jax.job.job import Job, of_one_process
from autollm_jax.models import lora, transformer
from autollm_jax.models.transformer import parameter_count
from autollm_jax.rl import sampler
from autollm_jax.rl.batches import Decisions, UpdateBatch
from autollm_jax.rl.grammar import LEAST_EDGES
from autollm_jax.rl.logprobs import Allowed
from autollm_jax.rl.objective import jit_reference, jit_update
from autollm_jax.sharding.mesh import AXES
from autollm_jax.sharding.rules import even_rows, tree_shardings
from autollm_jax.text.symbols import PANELS
from autollm_jax.training import flops
from autollm_jax.training.state import abstract_state, state_shardings
from autollm_jax.training.step import jit_train_step

GIB = 2**30
COLUMNS = ("parameters", "optimizer", "other", "cache", "activations")


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
    flops: FLOPs of all devices together; a decoding step counts one token per row.
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

    @property
    def total(self) -> int:
        """Bytes of the step on the fullest device."""
        return sum(getattr(self, name) for name in COLUMNS)


def on_fake_devices(config: ConfigDict) -> ConfigDict:
    """Split the CPU into the devices of a config's mesh; call it before JAX looks for devices.

    Returns:
      A copy of the config for these devices.

    Raises:
      UserError: neither the mesh nor config.plan.devices gives the number of devices.
    """
    sizes = [config.mesh[axis] for axis in AXES]
    devices = config.plan.devices if -1 in sizes else math.prod(sizes)
    if devices < 1:
        raise UserError(
            f"config.plan.devices={devices}: name the number of devices to plan for, since an axis "
            "of config.mesh is -1"
        )
    jax.config.update("jax_platforms", "cpu")
    config = of_one_process(config)
    config.mesh.cpu_devices = devices
    return config


def plan(job: Job) -> None:
    """Compile every step of a job; print the memory and FLOPs of each, and write `plan.json`.

    Args:
      job: the job, started with the config of `on_fake_devices`.

    Raises:
      UserError: a step needs more than `config.plan.device_memory_gib`.
    """
    count, sizes = parameter_count(job.model), dict(job.mesh.shape)
    axes = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    print(f"{count:,} parameters, {job.mesh.size} devices ({axes}); GiB a device, FLOPs of all")
    print(_row("step", "rows", "tokens", *COLUMNS, "sum", "FLOPs"))
    steps = []
    for step in _steps(job, even_rows(job.config.evaluation.games, job.mesh)):
        steps.append(step)
        memory = [f"{getattr(step, name) / GIB:.2f}" for name in (*COLUMNS, "total")]
        print(_row(step.name, step.rows, step.tokens, *memory, f"{step.flops:.1e}"), flush=True)
    for line in (*_uneven(job), *_undivided(job)):
        print(f"plan: {line}")
    path = job.workdir / "plan.json"
    write_json_atomic(
        path,
        {
            "parameters": count,
            "mesh": sizes,
            "steps": [dataclasses.asdict(step) | {"total": step.total} for step in steps],
        },
    )
    print(f"plan: wrote {path}, bytes a device and FLOPs")
    limit = job.config.plan.device_memory_gib
    largest = max(steps, key=lambda step: step.total)
    if limit and largest.total > limit * GIB:
        raise UserError(
            f"plan: {largest.name} needs {largest.total / GIB:.1f} GiB a device, "
            f"config.plan.device_memory_gib={limit}; raise config.mesh.fsdp or .tensor, or the "
            "stage's microbatches"
        )


def _row(name: str, *cells) -> str:
    return f"{name:16}" + "".join(f"{cell:>12}" for cell in cells)


def _uneven(job: Job) -> Iterator[str]:
    """Yield a line for each batch whose rows do not divide evenly among the devices."""
    grpo, shards = job.config.grpo, even_rows(1, job.mesh)
    for stage, field in (("distill", "batch_rows"), ("grpo", "minibatch_rows")):
        config = job.config[stage]
        rows = even_rows(config[field], job.mesh, config.microbatches)
        if config.steps and rows != config[field]:
            yield (
                f"config.{stage}.{field}={config[field]} is filled up to {rows} rows, for the "
                f"mesh's data x fsdp={shards} and config.{stage}.microbatches={config.microbatches}"
            )
    for name, rows in (("groups", grpo.groups), ("groups x group_size", _played(job))):
        if grpo.steps and rows % shards:
            yield (
                f"config.grpo.{name}={rows} is no multiple of the mesh's data x fsdp={shards}: "
                "each device reads and speaks all of them"
            )


def _undivided(job: Job) -> Iterator[str]:
    """Yield a line for each model dimension that a mesh axis does not divide.

    Arrays with such a dimension are replicated over the axis.
    """
    model = job.model
    for axis, fields in (
        ("fsdp", ("width",)),
        ("tensor", ("vocab_size", "heads", "kv_heads", "mlp_width")),
    ):
        split = job.mesh.shape[axis]
        for field in fields:
            size = getattr(model, field)
            if size % split:
                yield (
                    f"config.mesh.{axis}={split} does not divide the policy's {field}={size}: what "
                    "has that axis is whole on every device"
                )


def _played(job: Job) -> int:
    return job.config.grpo.groups * job.config.grpo.group_size


def _steps(job: Job, evaluated_rows: int) -> Iterator[StepPlan]:
    """Yield the plan of each step, in the order of the stages."""
    config, model = job.config, job.model
    params = _abstract_parameters(job)
    trained = lora.split(model, params)[1]
    # A second copy of the trained parameters is in memory: the published ones, or the reference.
    published = {"other": _bytes(trained) if config.policy.weights else 0}
    if config.distill.steps:
        shape = dataclasses.replace(model, dtype=config.distill.dtype)
        optimizer, pieces = job.optimizer(config.distill), config.distill.microbatches
        loss_fn, axes = functools.partial(imitation_loss, shape), lora.logical_axes(shape)
        shardings = state_shardings(functools.partial(lora.init, shape), axes, optimizer, job.mesh)
        step = jit_train_step(loss_fn, optimizer, shardings, job.mesh, pieces)
        rows = even_rows(config.distill.batch_rows, job.mesh, pieces)
        batch = _batch(PackedRows, rows, config.distill.row_length, chances=None)
        yield _update(job, "distill", step, optimizer, params, batch, **published)
    if config.grpo.steps:
        held = {"other": _bytes(trained)}
        hp, optimizer = job.grpo_hyperparameters(), job.optimizer(config.grpo)
        step = jit_update(model, hp, optimizer, job.mesh, config.grpo.microbatches)
        rows = even_rows(config.grpo.minibatch_rows, job.mesh, config.grpo.microbatches)
        batch = _grpo_batch(job, rows)
        update = _update(job, "grpo", step, optimizer, params, batch, **held)
        yield update
        held["optimizer"] = update.optimizer
        if config.grpo.kl_coefficient:
            reference = jit_reference(model, hp, job.mesh)
            rows = even_rows(config.grpo.minibatch_rows, job.mesh)
            batch = _grpo_batch(job, rows)
            compiled = _compile(job.mesh, reference, params, batch)
            yield _planned("grpo reference", batch, compiled, params, **held)
        yield from _sampling(job, "grpo", _played(job), config.grpo.temperature, params, **held)
    temperature = config.evaluation.temperature
    yield from _sampling(job, "evaluate", evaluated_rows, temperature, params, **published)


def _update(job: Job, stage: str, step, optimizer, params, batch, **held) -> StepPlan:
    """Plan the optimizer step of a stage; `step` is the stage's own jitted function."""
    init, axes = functools.partial(lora.init, job.model), lora.logical_axes(job.model)
    state = abstract_state(init, axes, optimizer, job.mesh)
    compiled = _compile(job.mesh, step, state, batch, lora.split(job.model, params)[0])
    held["optimizer"] = moments = _bytes(state.opt_state)
    return _planned(f"{stage} update", batch, compiled, params, read=moments, **held)


def _sampling(job: Job, stage: str, rows: int, temperature, params, **held) -> Iterator[StepPlan]:
    """Plan the programs of a turn at full context: append, decode, and growth of the cache.

    Memory of constrained-decoding grammars is not counted: it depends on the tables.
    """
    sizes, mesh = job.play(temperature).sampler, job.mesh
    wide = dataclasses.replace(job.model, dtype="float32", cache_dtype="float32")
    laid_out, layers = _laid_out(job.model, wide, params, mesh)
    held["other"] += layers

    def conversation(model, capacity):
        filled = dataclasses.replace(sizes, cache_block=capacity)
        return sampler.abstract_state(model, filled, rows, mesh)

    full = conversation(wide, sizes.context)
    held["cache"] = cache = _bytes(conversation(job.model, sizes.context).cache)
    each_B, chunk_BC = np.zeros(rows, np.int32), np.zeros((rows, sizes.chunk_sizes[-1]), np.int32)
    read = {"read": _bytes(full.cache)}
    compiled = _compile(mesh, sampler.jit_append, wide, laid_out, full, chunk_BC, each_B)
    yield _planned(f"{stage} append", chunk_BC, compiled, params, **read, **held)
    taking = sampler.Taking(each_B > 0, each_B)
    compiled = _compile(
        mesh, sampler.jit_decode, wide, laid_out, full, jax.random.key(0), taking, 0, 1.0,
        greedy=temperature == 0,
    )  # fmt: skip
    yield _planned(f"{stage} decode", chunk_BC[:, :1], compiled, params, **read, **held)
    if len(sizes.capacities) > 1:
        shorter = conversation(job.model, sizes.capacities[-2])
        compiled = _compile(mesh, sampler.jit_grow, shorter, sizes.context)
        read = {"read": cache - _bytes(params)}  # grow makes the cache and reads no parameters
        yield _planned(f"{stage} grow", chunk_BC[:, :0], compiled, params, **read, **held)


def _laid_out(model, wide, params, mesh: Mesh) -> tuple[dict, int]:
    """Lay the parameters out for decoding, as shapes.

    Args:
      model: the policy's shape.
      wide: the same shape in f32, which is compiled.

    Returns:
      The layout of `wide`, and the bytes per device of the layers in the layout of `model`.
    """
    with jax.set_mesh(mesh):
        shardings = transformer.for_decoding.lower(wide, params).compile().output_shardings

    def shapes(config):
        made = jax.eval_shape(functools.partial(transformer.for_decoding, config), params)
        return jax.tree.map(
            lambda x, split: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), made, shardings
        )

    return shapes(wide), _bytes(shapes(model)["layers"])


def _planned(name: str, batch, compiled: tuple[int, int], params, *, read: int = 0, **held):
    """Make the plan of a step.

    Activations are the bytes of the program, less the parameters and the `read` bytes.
    """
    rows, tokens = jax.tree.leaves(batch)[0].shape[:2]
    size, flop = compiled
    parameters = _bytes(params)
    columns = {"optimizer": 0, "other": 0, "cache": 0} | held
    activations = max(size - parameters - read, 0)
    return StepPlan(name, rows, tokens, parameters, activations=activations, flops=flop, **columns)


def _compile(mesh, jitted, *arguments, **static) -> tuple[int, int]:
    """Compile a step; return its bytes per device, including the arguments, and its FLOPs."""
    with jax.set_mesh(mesh):
        traced = jitted.trace(*arguments, **static)
        memory = traced.lower().compile().memory_analysis()
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return memory.argument_size_in_bytes + made, flops.count(traced.jaxpr)


def _abstract_parameters(job: Job) -> dict:
    """Return the whole policy as shapes and shardings."""
    shapes = transformer.parameter_shapes(job.model)
    shardings = tree_shardings(transformer.logical_axes(job.model), shapes, job.mesh)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _grpo_batch(job: Job, rows: int) -> UpdateBatch:
    """Make the shapes of GRPO's batch, of whole contexts."""
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
    more = {"allowed": allowed, "decisions": decisions, "turns_BT": turns, "weights_BT": weights}
    return _batch(UpdateBatch, rows, T, **more)


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
            if field.name not in others
        },
        **others,
    )


def _bytes(tree) -> int:
    """Return the bytes on one device of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
