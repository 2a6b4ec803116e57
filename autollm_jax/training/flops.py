"""FLOPs of a traced program: its matrix products, loops counted as often as they run.

XLA's own cost analysis counts the body of a loop once, and a model is a loop over layers inside one
over microbatches.
"""

import itertools
import math

import jax


def count(jaxpr, wanted=None) -> int:
    """Count the FLOPs of a program's matrix products, 2 a multiply-add, all devices together.

    A `scan` counts once for each of its steps; a `while_loop`, whose length is not known, once: of
    a decoding loop that is one token of each row. Of a `cond` the dearest branch counts. What no
    result depends on counts nothing, as a compiler drops it: gradients of frozen matrices.

    Args:
      jaxpr: from `jax.make_jaxpr(f)(...)` or `jitted.trace(...).jaxpr`.
      wanted: which of its results are; all by default.
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
        if name == "scan":  # what one step carries to the next is taken as wanted
            used[: equation.params["num_carry"]] = [True] * equation.params["num_carry"]
        inner = [
            count(part, used if len(_open(part).outvars) == len(used) else None)
            for part in _parts(equation.params)
        ]
        if name == "cond":
            total += max(inner)
        elif name == "shard_map":
            total += sum(inner) * math.prod(equation.params["mesh"].shape.values())
        else:
            total += sum(inner) * equation.params.get("length", 1)
    return total


def _open(jaxpr):
    return getattr(jaxpr, "jaxpr", jaxpr)


def _product(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    (out,) = equation.outvars
    return 2 * math.prod(out.aval.shape) * math.prod(left[axis] for axis in contracted)


def _parts(params) -> list:
    """Return the programs that an equation holds, in the order of its parameters."""
    leaves = jax.tree.leaves(
        list(params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    )
    return [leaf for leaf in leaves if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")]
