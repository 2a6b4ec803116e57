"""The target: the size of the run that is asked about, what it is about, what it limits."""

import dataclasses
import math
import re
from collections.abc import Mapping

from autollm_jax.advise.names import FIDELITIES, fidelity_of
from autollm_jax.advise.values import number
from autollm_jax.errors import UserError
from autollm_jax.gym.settings import Fidelity

ACCEPTED = (
    f"accepted is NAME=NUMBER,... with the names {', '.join(FIDELITIES)}, and COLUMN=VALUE; for "
    "example parameters=7e9,tokens=2e11"
)


@dataclasses.dataclass(frozen=True)
class Target:
    """What is asked about.

    Attributes:
      sizes: the fidelity, by name.
      contexts: by column, the value that the target has of what tells experiments apart.
      quantity, at_most: what a configuration may have; "" and nan without a limit.
    """

    sizes: Mapping[str, float]
    contexts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    quantity: str = ""
    at_most: float = math.nan

    @classmethod
    def of(cls, given: "Target | Mapping[str, float | str] | str") -> "Target":
        """Read a target, a mapping, or a text such as 'parameters=7e9,tokens=200B,corpus=c4'.

        Other names than fidelities are columns. 'parameters<=1e8' limits what a configuration may
        have; in a mapping the name is 'parameters<='.

        Raises:
          UserError: a name or a number is not understood.
        """
        if isinstance(given, Target):
            return given
        pairs = _pairs(given) if isinstance(given, str) else given.items()
        sizes: dict[str, float] = {}
        contexts: dict[str, str] = {}
        quantity, at_most = "", math.nan
        for name, value in pairs:
            amount = number(value)
            if name not in FIDELITIES and amount is not None and not name.endswith("<="):
                name = fidelity_of(name) or name  # params=7B, n_params=7B
            if name.endswith("<=") and amount is not None:
                quantity, at_most = name.removesuffix("<="), amount
            elif name not in FIDELITIES and value:
                contexts[name] = str(value)
            elif name in FIDELITIES and amount is not None and 0 < amount < math.inf:
                sizes[name] = amount
            else:
                shown = f"{name}={value}" if value else name
                raise UserError(f"target: {shown!r} is not understood; {ACCEPTED}")
        if not sizes and not quantity:
            named = f" but {', '.join(contexts)}" if contexts else ""
            raise UserError(f"target: says no size{named}; {ACCEPTED}")
        return cls(sizes, contexts, quantity, at_most)

    @property
    def label(self) -> str:
        return label(self.sizes, self.contexts)

    def limit(self, at_most: float) -> dict | None:
        """Return a limit as settings have it; None without one."""
        if not self.quantity or not math.isfinite(at_most):
            return None
        return {"quantity": "parameters", "at_most": at_most}

    def fidelity(self, numbers: Mapping[str, float], level: str, at_most: float) -> Fidelity:
        """Bring what is known of a fidelity into parameters and tokens.

        Where tokens are not known, steps, epochs, FLOPs or hours stand for them: what forecasts
        compare is their ratio. Under a limit the limit stands for the parameters.
        """
        limited = bool(self.quantity) and math.isfinite(at_most)
        parameters = at_most if limited else numbers.get("parameters", 0.0)
        stand_ins = [numbers[name] for name in ("tokens", "steps", "epochs") if name in numbers]
        if not stand_ins and not parameters:
            stand_ins = [numbers[name] for name in ("flops", "hours") if name in numbers]
        tokens = stand_ins[0] if stand_ins else 0.0
        flops = numbers.get("flops") or (6.0 * parameters * tokens if tokens else 0.0)
        return Fidelity(level, parameters, tokens, flops or parameters or tokens)


def label(numbers: Mapping[str, float], context: Mapping[str, str]) -> str:
    """Name an experiment by its size and context."""
    parts = [f"{name}={amount:.4g}" for name, amount in numbers.items() if not math.isnan(amount)]
    parts += [f"{name}={value}" for name, value in context.items()]
    return ",".join(parts) or "cheap"


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = []
    for part in filter(None, re.split(r"[,;]\s*(?=[^,;=]+=)", text)):
        name, _, value = (piece.strip() for piece in part.partition("="))
        pairs.append((f"{name}=" if name.endswith("<") else name, value))
    return pairs
