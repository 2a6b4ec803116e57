"""Why a proposal is not the configuration with the best predicted outcome."""

from collections.abc import Sequence

import numpy as np

from autollm_jax.advise.intervals import Expected
from autollm_jax.advise.values import spell_config
from autollm_jax.forecasts.advice import Decision

FAR = 0.25  # share of a dimension's range: so far apart values need a word
WORSE = 0.1  # units of regret: a predicted outcome so much worse needs a word
LESS_CERTAIN = 1.25  # a factor between deviations


def why_not_best(decision: Decision, found: Expected, row: int, trusted: Sequence[int]) -> str:
    """Say in one line why a row is proposed that is far from the best predicted one; "" if near.

    Args:
      decision: what the advisers expect.
      found: the predicted outcomes.
      row: the proposal.
      trusted: positions of the advisers that the decider trusts; all where there is none.
    """
    panel, advice, trials = decision.panel, decision.advice, decision.observation.trials
    regrets_R = np.where(advice.open_R, panel.predict(trials).mean_R, np.inf)
    best = int(regrets_R.argmin())
    apart = np.abs(panel.units_RD[row] - panel.units_RD[best]).max()
    if row == best or (apart < FAR and regrets_R[row] - regrets_R[best] < WORSE):
        return ""
    group = list(trusted) or list(range(len(advice.names)))
    names = [advice.names[place] for place in group]
    left_AR = advice.remaining_AR[group]
    here, there = np.minimum(left_AR, 1.0)[:, [row, best]].mean(0)
    who = "all advisers together" if len(group) == len(advice.names) else joined(names)
    agree = [
        name for name, left_R in zip(names, left_AR, strict=True) if left_R[row] < left_R[best]
    ]
    reasons = [
        f"{who} {'expect' if len(group) > 1 else 'expects'} {_less(here, there)} regret to remain "
        f"after the proposal ({here:.2f} against {there:.2f})"
    ]
    if 1 <= len(agree) < len(group):
        reasons[0] += f", which {joined(agree)} {'say' if len(agree) > 1 else 'says'}"
    link = "but" if here < there else "another was chosen, though"
    ratio = found.deviation_R[row] / max(found.deviation_R[best], 1e-300)
    if trials and ratio > LESS_CERTAIN:
        reasons.append(
            f"its outcome is {ratio:.1f} times as uncertain, so that trying it tells more"
        )
    metric, setting = panel.setting.objective.metric, panel.setting
    outcomes = [f"{found.mean_R[each]:.4g}" for each in (best, row)]
    predicted = "" if "nan" in outcomes else f" ({metric} {outcomes[0]} against {outcomes[1]})"
    return (
        f"the best predicted configuration is {spell_config(setting.configurations[best])}"
        f"{predicted}; {link} {'; and '.join(reasons)}"
    )


def joined(names: Sequence[str]) -> str:
    """Join names: own, drift and trees."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _less(here: float, there: float) -> str:
    return "less" if here < there else "as much" if here == there else "more"
