"""Counts the FLOPs of a traced program's matrix products; a loop counts once for each iteration.

XLA's own cost analysis counts the body of a loop once, and a model is a loop over layers inside a
loop over microbatches.
"""

import dataclasses
import itertools
import math

import jax

from autollm_jax.models.transformer import TransformerConfig

RECOMPUTING = ("checkpoint", "remat", "remat2")  # names that jax gives `jax.checkpoint`


def without_recomputation(model: TransformerConfig) -> TransformerConfig:
    """Return a model whose backward pass computes nothing again; it is counted, and never run."""
    return dataclasses.replace(model, remat="none", row_logits=2**62)


def recomputes(jaxpr) -> bool:
    """Whether a program computes something again that it did not keep."""
    return any(
        equation.primitive.name in RECOMPUTING or any(map(recomputes, _parts(equation.params)))
        for equation in _open(jaxpr).eqns
    )


def count(jaxpr, wanted=None) -> int:
    """Count the FLOPs of a program's matrix products, 2 a multiply-add, over all devices.

    A `scan` counts once for each of its steps. A `while_loop`, whose length is not known, counts
    once: for a decoding loop that is one token of each row. Of a `cond` the most expensive branch
    counts. A product that no wanted result depends on counts nothing, since a compiler drops it
    (the gradient of a frozen matrix, for example).

    Args:
      jaxpr: from `jax.make_jaxpr(f)(...)` or `jitted.trace(...).jaxpr`.
      wanted: one bool for each of the program's results; all of them by default.

    Returns:
      The number of FLOPs.
    """
    jaxpr = _open(jaxpr)
    results = jaxpr.outvars if wanted is None else itertools.compress(jaxpr.outvars, wanted)
    read, total = {id(result) for result in results}, 0
    for equation in reversed(jaxpr.eqns):
        name, used = equation.primitive.name, [id(out) in read for out in equation.outvars]
        if not any(used) and not equation.effects:
            continue
        read |= {id(operand) for operand in equation.invars}
        if name == "dot_general":
            total += _product(equation)
            continue
        parts = _parts(equation.params)
        if name == "scan":
            used = _wanted_of_a_step(equation, _open(parts[0]), used)
        inner = [
            count(part, used if len(_open(part).outvars) == len(used) else None) for part in parts
        ]
        if name == "cond":
            total += max(inner)
        elif name == "shard_map":
            total += sum(inner) * math.prod(equation.params["mesh"].shape.values())
        else:
            total += sum(inner) * equation.params.get("length", 1)
    return total


def _open(jaxpr):
    """Return the program inside a closed one; an open one as it is."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _product(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    (out,) = equation.outvars
    return 2 * math.prod(out.aval.shape) * math.prod(left[axis] for axis in contracted)


def _wanted_of_a_step(equation, step, used: list[bool]) -> list[bool]:
    """Return which results of a scan's step are wanted: a carried value is, for the next step.

    A carried value has the same shape inside and outside; a stacked one has one axis more outside.
    """
    pairs = zip(used, equation.outvars, step.outvars, strict=True)
    return [wanted or outer.aval.shape == inner.aval.shape for wanted, outer, inner in pairs]


def _parts(params) -> list:
    """Return the programs among an equation's parameters, in the parameters' order."""
    leaves = jax.tree.leaves(
        list(params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    )
    return [leaf for leaf in leaves if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")]
