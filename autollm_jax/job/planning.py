"""Plans a job's memory, FLOPs and communication without its devices.

1. find the compiler: the CPU's, split into as many JAX devices as the config's mesh has, or a
   TPU's or GPU's own, which compiles for devices that are not there (`compilers`)
2. compile each step from shapes alone, with the job's own functions (`planned_steps`)
3. print a table, and write it to `plan.json`; what the text of an accelerator's program says of
   collectives, activations and time comes as a second table
4. compare with a limit of memory, and with budgets kept in a file
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from autollm_jax import host
from autollm_jax.compilers import budgets, targets
from autollm_jax.errors import UserError
from autollm_jax.files import write_json_atomic
from autollm_jax.job.job import Job, of_one_process
from autollm_jax.job.planned_steps import COLUMNS, StepPlan, planned_steps
from autollm_jax.models.transformer import parameter_count
from autollm_jax.sharding.mesh import AXES, MeshShape, make_mesh
from autollm_jax.sharding.rules import even_rows

GIB, MIB = 2**30, 2**20


def start(config: ConfigDict, workdir: str) -> Job:
    """Return the job on the devices that `config.plan.compiler` stands for.

    Call it before JAX looks for devices.

    Raises:
      UserError: the compiler is not installed, or its devices do not fit the mesh.
    """
    if config.plan.compiler == targets.FAKE:
        return Job.start(on_fake_devices(config), workdir)
    host.only_cpu()
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_enable_compilation_cache", False)  # it is of programs that can run
    devices = targets.devices_of(config.plan.compiler)
    shape = MeshShape(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    return Job(of_one_process(config), Path(workdir), make_mesh(shape, devices))


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
    host.only_cpu()
    config = of_one_process(config)
    config.mesh.cpu_devices = devices
    return config


def plan(job: Job) -> None:
    """Compile the steps of a job; print what each takes, and write `plan.json`.

    Args:
      job: the job, from `start`.

    Raises:
      UserError: a step needs more than `config.plan.device_memory_gib` or than its budget, or the
        compiler has no room for it.
    """
    settings, sizes = job.config.plan, dict(job.mesh.shape)
    count = parameter_count(job.model)
    axes = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    by = "" if settings.compiler == targets.FAKE else f" by the compiler of {settings.compiler}"
    print(f"{count:,} parameters, {job.mesh.size} devices ({axes}); GiB a device, FLOPs of all{by}")
    print(_row("step", "rows", "tokens", *COLUMNS, "sum", "FLOPs"))
    steps = []
    for step in planned_steps(job, even_rows(job.config.evaluation.games, job.player_mesh)):
        steps.append(step)
        memory = [f"{getattr(step, name) / GIB:.2f}" for name in (*COLUMNS, "total")]
        print(_row(step.name, step.rows, step.tokens, *memory, f"{step.flops:.1e}"), flush=True)
    timed = None
    if settings.compiler != targets.FAKE:
        timed = _times(job, steps)
        for line in (*_compiled(steps, timed), *_communication(steps)):
            print(line)
    else:
        print(
            "plan: by the CPU's compiler, whose updates take more than an accelerator's "
            "(docs/clusters.md); config.plan.compiler=tpu:v5e:4x4 or gpu:h100:1x8 asks those"
        )
    for line in (*_uneven(job), *_undivided(job), *_slow(job)):
        print(f"plan: {line}")
    path = job.workdir / "plan.json"
    write_json_atomic(
        path,
        {
            "parameters": count,
            "mesh": sizes,
            "compiler": settings.compiler,
            "steps": [_entry(step, timed) for step in steps],
        },
    )
    print(f"plan: wrote {path}, bytes a device and FLOPs")
    limit = settings.device_memory_gib
    largest = max(steps, key=lambda step: step.total)
    if limit and largest.total > limit * GIB:
        raise UserError(
            f"plan: {largest.name} needs {largest.total / GIB:.1f} GiB a device, "
            f"config.plan.device_memory_gib={limit}; raise config.mesh.fsdp or .tensor, or the "
            "stage's microbatches"
        )
    if settings.budgets:
        _budgets(job, count, steps)


def _budgets(job: Job, count: int, steps: list[StepPlan]) -> None:
    """Write the budgets of this compiler, or compare with them."""
    settings, path = job.config.plan, Path(job.config.plan.budgets)
    made_with = {
        "parameters": count,
        "mesh": ",".join(f"{axis}={size}" for axis, size in job.mesh.shape.items()),
        "jax": jax.__version__,
        "optimization": _optimization(),
    }
    found = {step.name: step.findings for step in steps}
    if settings.write_budgets:
        budgets.write(path, settings.compiler, made_with, found)
        print(f"plan: wrote the budgets of {settings.compiler} to {path}")
        return
    lines = budgets.exceeded(path, settings.compiler, made_with, found)
    if lines:
        raise UserError("plan: over budget; " + "; ".join(lines))
    print(f"plan: {len(found)} steps keep the budgets of {path}, {budgets.TOLERANCE:.0%} allowed")


def _optimization() -> str:
    """Return the level that XLA optimises at: "UNKNOWN" is its default."""
    return str(jax.config.jax_optimization_level)


def _times(job: Job, steps: list[StepPlan]) -> dict[str, dict[str, float]]:
    """Return seconds and shares of peak by step, of those with cycles.

    Keys of a step: seconds, loop_seconds (one pass of a loop of unknown length), utilization (of
    the chips' bf16 peak, by all FLOPs) and mfu (recomputed ones not counted).
    """
    if _optimization() not in ("UNKNOWN", "O3"):
        return {}
    chip, times = targets.chip_of(job.config.plan.compiler), {}
    for step in steps:
        if chip.hertz and step.findings and step.findings.cycles:
            seconds = step.findings.cycles / chip.hertz
            able = job.mesh.size * chip.peak * seconds
            times[step.name] = {
                "seconds": seconds,
                "loop_seconds": step.findings.loop_cycles / chip.hertz,
                "utilization": step.flops / able,
                "mfu": step.useful_flops / able,
            }
    return times


def _entry(step: StepPlan, timed: dict | None) -> dict:
    values = dataclasses.asdict(step) | {"total": step.total}
    if step.findings is None or timed is None:
        return values
    values["findings"]["collective_bytes"] = step.findings.collective_bytes
    return values | {"estimates": timed.get(step.name)}


def _compiled(steps: list[StepPlan], timed: dict) -> Iterator[str]:
    """Yield the lines of the second table."""
    yield "by the compiler, a device: temporaries and collectives GiB (asynchronous: their share),"
    yield "parameters moved inside the decode loop MiB, arrays MiB, and its estimates of time"
    yield _row(
        "step", "temporaries", "collectives", "asynchron.", "in loop", "f32", "logits", "T x T",
        "ms", "a token", "MFU", "recomputed", "kernels",
    )  # fmt: skip
    for step in steps:
        found = step.findings
        assert found is not None
        moved = found.collective_bytes
        overlapped = sum(each.asynchronous_bytes for each in found.collectives)
        time, estimates = timed.get(step.name), ["-"] * 4
        if time:
            token = f"{1000 * time['loop_seconds']:.2f}" if time["loop_seconds"] else "-"
            mfu, all_of_it = f"{time['mfu']:.1%}", f"{time['utilization']:.1%}"
            estimates = [f"{1000 * time['seconds']:.1f}", token, mfu, all_of_it]
        yield _row(
            step.name, f"{found.temporary_bytes / GIB:.2f}", f"{moved / GIB:.2f}",
            f"{overlapped / moved:.0%}" if moved else "-",
            f"{found.loop_parameter_bytes / MIB:.0f}", f"{found.f32_activation_bytes / MIB:.0f}",
            f"{found.logits_bytes / MIB:.0f}", "yes" if found.scores else "none", *estimates,
            found.kernels,
        )  # fmt: skip
    yield "MFU: without recomputed products; recomputed: with them. Collectives and kernels take"
    yield "no time in these estimates, and a loop of unknown length counts one pass."
    if not timed and any(step.findings and step.findings.cycles for step in steps):
        level = _optimization()
        yield f"No estimates of time: cycles mean nothing at JAX_OPTIMIZATION_LEVEL={level}."


def _communication(steps: list[StepPlan]) -> Iterator[str]:
    """Yield a line for each step and kind of collective, and the arrays that matter."""
    for step in steps:
        found = step.findings
        assert found is not None
        kinds = [
            f"{each.count:,} {each.kind} of {each.bytes / GIB:.2f} GiB ({each.asynchronous:,} "
            "asynchronous)"
            for each in found.collectives
        ]
        yield f"{step.name}: {', '.join(kinds) or 'no collective'}"
        if found.loop_parameter_count:
            yield (
                f"{step.name}: {found.loop_parameter_count:,} collectives move parameters inside "
                f"the decode loop, {found.loop_parameter_bytes / MIB:.0f} MiB at every token"
            )
        arrays = [f"largest f32 activation {found.f32_activation}"] if found.f32_activation else []
        arrays += [f"scores {found.scores}"] if found.scores else []
        if arrays:
            yield f"{step.name}: {', '.join(arrays)}"


def _row(name: str, *cells) -> str:
    return f"{name:16}" + "".join(f"{cell:>12}" for cell in cells)


def _uneven(job: Job) -> Iterator[str]:
    """Yield a line for each batch whose rows do not divide evenly among the devices."""
    grpo = job.config.grpo
    players, trainers = job.grpo_meshes if grpo.steps else (job.player_mesh, job.mesh)
    for stage, field, mesh in (
        ("distill", "batch_rows", job.mesh), ("grpo", "minibatch_rows", trainers),
    ):  # fmt: skip
        config, shards = job.config[stage], even_rows(1, mesh)
        rows = even_rows(config[field], mesh, config.microbatches)
        if config.steps and rows != config[field]:
            yield (
                f"config.{stage}.{field}={config[field]} is filled up to {rows} rows, for the "
                f"mesh's data x fsdp={shards} and config.{stage}.microbatches={config.microbatches}"
            )
    shards, fewer = even_rows(1, players), 0 < job.config.rollout.rows == job.rollout_rows
    played = "rollout.rows" if fewer else "grpo.groups x group_size"
    for name, rows in (("grpo.groups", grpo.groups), (played, job.rollout_rows)):
        if grpo.steps and rows % shards:
            yield (
                f"config.{name}={rows} is no multiple of the players' data x fsdp={shards}: "
                "each device reads and speaks all of them"
            )


def _slow(job: Job) -> Iterator[str]:
    """Yield a line for each stage whose gradients cross the network between slices too often."""
    devices = [each for each in job.mesh.devices.flat if each.platform == "tpu"]
    slices = {getattr(device, "slice_index", None) or 0 for device in devices}
    for stage in ("distill", "grpo"):
        pieces = job.config[stage].microbatches
        if len(slices) > 1 and job.config[stage].steps and pieces > 1:
            yield (
                f"config.{stage}.microbatches={pieces}: each of them sends its gradients over the "
                f"network between {len(slices)} slices; with 1 they cross it once an update"
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
