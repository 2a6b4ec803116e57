"""Published methods, run by the code of their own authors' packages; none runs unless named.

Baselines are our own code, so a comparison with them alone says little of the methods they follow.
A peer is a baseline in all but this: its model and its acquisition come from a public package. It
gets the same problem (see `baselines.base.Problem`) and tries the same rows.

    method = load("botorch_multi_task")(Problem(setting, evidence, budget), seed)

The packages are heavy and not needed by anything else: `pip install -r requirements-peers.txt`.
Importing `autollm_jax.peers` loads none of them.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from autollm_jax.baselines import Method, Problem
from autollm_jax.errors import UserError

REQUIREMENTS = "requirements-peers.txt"


@dataclass(frozen=True)
class Peer:
    """Where a peer's class is, and the packages that it needs, by the names they import by."""

    module: str
    cls: str
    packages: tuple[str, ...]


PEERS: dict[str, Peer] = {
    "botorch_multi_task": Peer("botorch_processes", "MultiTask", ("torch", "botorch")),
    "botorch_multi_fidelity": Peer("botorch_processes", "MultiFidelity", ("torch", "botorch")),
    "syne_tune_zero_shot": Peer("syne_tune_transfer", "ZeroShot", ("xgboost", "syne_tune")),
    "syne_tune_quantiles": Peer("syne_tune_transfer", "Quantiles", ("xgboost", "syne_tune")),
    "syne_tune_bounding_box": Peer("syne_tune_transfer", "Box", ("xgboost", "syne_tune")),
    "smac_forest": Peer("smac_forest", "SmacForest", ("ConfigSpace", "smac")),
    "optuna_gp": Peer("optuna_process", "OptunaGP", ("torch", "optuna")),
}


def load(name: str) -> Callable[[Problem, int], Method]:
    """Import a peer's class.

    Raises:
      UserError: one of its packages is not installed.
    """
    peer = PEERS[name]
    for package in peer.packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise UserError(
                f"method {name} needs the package {error.name}: pip install -r {REQUIREMENTS}"
            ) from error
    return getattr(importlib.import_module(f"{__name__}.{peer.module}"), peer.cls)
