"""Group-relative policy optimisation: advantages and loss, arrays in and arrays out.

GRPO is from DeepSeekMath (arXiv 2402.03300); a clip range that is wider above than below and the
mean over all tokens of a batch are from DAPO (arXiv 2503.14476); the choice not to divide by the
group's standard deviation is Dr. GRPO's (arXiv 2503.20783). Off by default: the second clip of
dual-clip PPO (arXiv 1912.09729), ratios of whole turns as GSPO has them of sequences (arXiv
2507.18071), truncated importance weights.

Letters: N groups, G members of a group, J turns, B rows, T tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp

from autollm_jax.training.masked import Metric, masked_sum

NORMALISATIONS = ("std", "none")
CREDITS = ("episode", "turn")
MEMBERS = ("enumerated", "sampled")
HELD = 1.0  # weight of the divergence of a decision that is not learned, in units of reward a nat
RATIOS = ("token", "sequence")
FAR_ABOVE = 20.0  # nats: a ratio of exp(20) is above every clip range, and f32 holds it


@dataclasses.dataclass(frozen=True)
class GRPOHyperparameters:
    """Hyperparameters of the advantages and the loss.

    clip_low, clip_high: the probability ratio counts down to 1 - clip_low and up to 1 + clip_high.
    kl_coefficient: weight of the divergence from the reference policy.
    entropy_coefficient: weight of an entropy bonus.
    temperature: of the rollout; the trainer recomputes log-probabilities with it.
    normalisation: "std" divides advantages by the group's standard deviation, "none" does not.
    credit: "episode" gives every token the episode's return; "turn" gives a turn's tokens the
      rewards from that turn on.
    first_turn: turns before it, counted from 1, are not learned: they have no advantage, and their
      decisions are held to the reference (`HELD`).
    members: of a group: "sampled" episodes, or the "enumerated" choices of each decision, whose
      rewards are known (`decision_loss`).
    speech_coefficient: with enumerated members, weight of the other tokens' divergence from the
      reference.
    dual_clip: over 1: under a negative advantage the ratio counts up to this number; 0: however
      large it is.
    ratio: "token" has a probability ratio for each token, "sequence" one for each turn.
    importance_cap: over 0: the objective is weighted by the policy's probability in the trainer
      over that in the sampler, up to this number (`objective.with_weights`); 0: no weights.
    mask_truncated: rows that were cut do not count in the loss.

    Raises:
      ValueError: normalisation, credit, members or ratio is none of the accepted ones.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_coefficient: float = 0.01
    entropy_coefficient: float = 0.0
    temperature: float = 1.0
    normalisation: str = "std"
    credit: str = "turn"
    first_turn: int = 1
    members: str = "sampled"
    speech_coefficient: float = 0.1
    dual_clip: float = 0.0
    ratio: str = "token"
    importance_cap: float = 0.0
    mask_truncated: bool = False

    def __post_init__(self):
        accepted = {"normalisation": NORMALISATIONS, "credit": CREDITS, "members": MEMBERS}
        accepted["ratio"] = RATIOS
        for name, values in accepted.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(values)}"
                )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads the reference policy's log-probabilities."""
        return self.kl_coefficient != 0 or self.members == "enumerated"


def group_advantages(rewards_NG, mask_NG=None, *, normalisation: str = "std", epsilon=1e-4):
    """Score each member against its group.

    Args:
      rewards_NG: return of each member.
      mask_NG: members that exist; all by default. The others neither count nor score.
      normalisation: "std" or "none".
      epsilon: a standard deviation up to this is rounding; such a group scores 0.

    Returns:
      advantages_NG: reward minus the group's mean; with "std" divided by its standard deviation.
      A group without differences, or with one member, scores 0.

    Source: DeepSeekMath, arXiv 2402.03300, section 4.1.2.
    """
    rewards_NG = jnp.asarray(rewards_NG, jnp.float32)
    mask_NG = jnp.ones_like(rewards_NG, bool) if mask_NG is None else jnp.asarray(mask_NG, bool)
    count_N1 = jnp.maximum(mask_NG.sum(-1, keepdims=True), 1)
    mean_N1 = jnp.where(mask_NG, rewards_NG, 0).sum(-1, keepdims=True) / count_N1
    centred_NG = jnp.where(mask_NG, rewards_NG - mean_N1, 0)
    std_N1 = jnp.sqrt((centred_NG**2).sum(-1, keepdims=True) / count_N1)
    scale_N1 = std_N1 if normalisation == "std" else jnp.ones_like(std_N1)
    return jnp.where(std_N1 > epsilon, centred_NG / jnp.maximum(scale_N1, epsilon), 0)


def turn_advantages(rewards_NGJ, mask_NGJ, hp: GRPOHyperparameters):
    """Score each turn against the same turn of the group's other members.

    Args:
      rewards_NGJ: reward of each turn.
      mask_NGJ: turns that took place.
      hp: with credit "turn", a turn's return is the sum of the rewards from that turn on, so that
        no turn is blamed for earlier ones; with "episode", it is the whole episode's.

    Returns:
      advantages_NGJ, 0 where no turn took place.
    """
    rewards_NGJ = jnp.where(mask_NGJ, rewards_NGJ, 0)
    if hp.credit == "episode":
        total_NG = rewards_NGJ.sum(-1)
        advantages_NG = group_advantages(total_NG, normalisation=hp.normalisation)
        return jnp.where(mask_NGJ, advantages_NG[..., None], 0)
    returns_NGJ = jnp.flip(jnp.cumsum(jnp.flip(rewards_NGJ, -1), -1), -1)
    by_turn_NJG = group_advantages(
        jnp.swapaxes(returns_NGJ, 1, 2),
        jnp.swapaxes(mask_NGJ, 1, 2),
        normalisation=hp.normalisation,
    )
    return jnp.swapaxes(by_turn_NJG, 1, 2)


def token_advantages(advantages_BJ, turns_BT):
    """Give each sampled token its turn's advantage, and 0 to the environment's (turn -1)."""
    each_BT = jnp.take_along_axis(jnp.asarray(advantages_BJ), jnp.maximum(turns_BT, 0), axis=1)
    return jnp.where(turns_BT >= 0, each_BT, 0)


def turn_means(x_BT, turns_BT, mask_BT):
    """Average over each turn's tokens in the mask.

    Args:
      x_BT: a number for each token.
      turns_BT: the turn of each token, from 0; outside the mask any number.
      mask_BT: tokens that count.

    Returns:
      mean_BT, the mean of a token's turn, and count_BT, the turn's number of tokens; 0 and 1
      outside the mask.
    """
    T = x_BT.shape[1]

    def of_row(x_T, turn_T, mask_T):
        place_T = jnp.where(mask_T, turn_T, T)  # place T gathers what is outside the mask
        values_T2 = jnp.stack([jnp.where(mask_T, x_T, 0), mask_T.astype(x_T.dtype)], axis=-1)
        sums_T2 = jnp.zeros((T + 1, 2), x_T.dtype).at[place_T].add(values_T2)[place_T]
        count_T = jnp.maximum(sums_T2[:, 1], 1)
        return sums_T2[:, 0] / count_T, count_T

    return jax.vmap(of_row)(jnp.asarray(x_BT), jnp.asarray(turns_BT), jnp.asarray(mask_BT))


@jax.custom_jvp
def _capped(x_BT, limit):
    """Return min(x, limit), with the derivative of x.

    The factor of the derivative is 0 beyond the limit; a select would only cost fused arithmetic.
    """
    return jnp.minimum(x_BT, limit)


_capped.defjvps(lambda tangent, _, x_BT, limit: tangent, None)


def grpo_loss(
    logprobs_BT: jax.Array,
    entropy_BT: jax.Array,
    behaviour_BT: jax.Array,
    reference_BT: jax.Array,
    advantages_BT: jax.Array,
    mask_BT: jax.Array,
    hp: GRPOHyperparameters,
    turns_BT: jax.Array | None = None,
    weights_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, Metric]]:
    """Compute the clipped objective with a KL penalty.

    Args:
      logprobs_BT: of the tokens under the trained policy; differentiable, as the entropy is.
      entropy_BT: of the distribution at each token, nats.
      behaviour_BT: log-probabilities recorded when the tokens were sampled.
      reference_BT: log-probabilities under the reference policy; any finite number at
        kl_coefficient 0.
      advantages_BT: of each token.
      mask_BT: tokens that the policy sampled.
      hp: the hyperparameters.
      turns_BT: the turn of each token; needed with ratios of sequences. All tokens of a turn have
        one advantage.
      weights_BT: factors of the objective's tokens; 1 by default.

    Returns:
      The loss summed over the tokens in the mask, their number, and metrics as (sum, count). With
      ratios of sequences a turn counts as one, however long it is: its ratio is the geometric mean
      of its tokens', and the sum is over turns of the mean over a turn's tokens. The KL is
      Schulman's k3 estimate, exp(d) - d - 1 with d = reference - policy
      (http://joschu.net/blog/kl-approx.html), as DeepSeekMath uses it.

    Source: arXiv 2402.03300, equations 3 and 4; arXiv 2503.14476, equation 8; arXiv 1912.09729,
    equation 5 (`dual_clip`); arXiv 2507.18071, equations 5 to 7 (`ratio`).
    """
    # An exponential that overflows is infinite; where its factor is 0, the loss or its gradient
    # would be 0 x infinity. So an exponent has a limit where a large one does not count: a ratio
    # under an advantage of at least 0 (it is clipped), the KL at coefficient 0.
    gap_BT = jnp.where(mask_BT, logprobs_BT - behaviour_BT, 0)
    exponent_BT, count_BT = gap_BT, None
    if hp.ratio == "sequence":
        exponent_BT, count_BT = turn_means(gap_BT, turns_BT, mask_BT)
    negative_BT = advantages_BT < 0
    limit_BT = FAR_ABOVE if hp.dual_clip else jnp.where(negative_BT, jnp.inf, FAR_ABOVE)
    ratio_BT = jnp.exp(_capped(exponent_BT, limit_BT))
    clipped_BT = jnp.clip(ratio_BT, 1 - hp.clip_low, 1 + hp.clip_high)
    objective_BT = jnp.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    # A token counts as clipped where the clip has stopped its gradient.
    is_clipped_BT = clipped_BT * advantages_BT < ratio_BT * advantages_BT
    if hp.dual_clip:
        is_clipped_BT |= negative_BT & (ratio_BT > hp.dual_clip)
        bound_BT = jnp.where(negative_BT, hp.dual_clip * advantages_BT, -jnp.inf)
        objective_BT = jnp.maximum(objective_BT, bound_BT)
    if weights_BT is not None:
        objective_BT = weights_BT * objective_BT
    difference_BT = jnp.where(mask_BT, reference_BT - logprobs_BT, 0)
    limit = jnp.where(hp.kl_coefficient == 0, FAR_ABOVE, jnp.inf)
    difference_BT = _capped(difference_BT, limit)
    kl_BT = jnp.exp(difference_BT) - difference_BT - 1
    loss_BT = -objective_BT + hp.kl_coefficient * kl_BT - hp.entropy_coefficient * entropy_BT
    policy_loss = masked_sum(-objective_BT, mask_BT)
    loss, count = masked_sum(loss_BT, mask_BT)
    if count_BT is not None:
        loss, count = (masked_sum(x_BT / count_BT, mask_BT)[0] for x_BT in (loss_BT, mask_BT))
        policy_loss = masked_sum(-objective_BT / count_BT, mask_BT)[0], count
    metrics = {
        "policy_loss": policy_loss,
        "kl": masked_sum(kl_BT, mask_BT),
        "entropy": masked_sum(entropy_BT, mask_BT),
        "clip_share": masked_sum(is_clipped_BT.astype(jnp.float32), mask_BT),
        # In a rollout's first update this is the rounding between sampler and trainer.
        "logprob_gap": masked_sum(jnp.abs(gap_BT), mask_BT),
    }
    return loss, count, metrics


def decision_loss(
    logits_BJP: jax.Array,
    reference_BJP: jax.Array,
    rewards_BJP: jax.Array,
    mask_BJ: jax.Array,
    hp: GRPOHyperparameters,
) -> tuple[jax.Array, jax.Array, dict[str, Metric]]:
    """Compute the objective of enumerated groups: every choice of a decision is a member.

    A group that holds each of P choices once, weighted by the policy's own probability of it, needs
    no sampling: the expected reward's gradient is exact, and the group's mean is its baseline.

    Args:
      logits_BJP: of the choices under the trained policy; differentiable.
      reference_BJP: under the reference policy.
      rewards_BJP: what each choice would have brought.
      mask_BJ: decisions that were made.
      hp: weights of divergence and entropy, and the temperature.

    Returns:
      The loss summed over the decisions, their number, and metrics as (sum, count).
    """
    scale = hp.temperature if hp.temperature > 0 else 1.0
    log_BJP = jax.nn.log_softmax(logits_BJP / scale)
    chance_BJP = jnp.exp(log_BJP)
    reference_BJP = jax.nn.log_softmax(reference_BJP / scale)
    reward_BJ = (chance_BJP * rewards_BJP).sum(-1)
    kl_BJ = (chance_BJP * (log_BJP - reference_BJP)).sum(-1)
    entropy_BJ = -(chance_BJP * log_BJP).sum(-1)
    loss_BJ = -reward_BJ + hp.kl_coefficient * kl_BJ - hp.entropy_coefficient * entropy_BJ
    held_J = jnp.arange(loss_BJ.shape[1]) < hp.first_turn - 1
    loss_BJ = jnp.where(held_J, HELD * kl_BJ, loss_BJ)
    loss, count = masked_sum(loss_BJ, mask_BJ)
    metrics = {
        "decision_reward": masked_sum(reward_BJ, mask_BJ),
        "decision_kl": masked_sum(kl_BJ, mask_BJ),
        "decision_entropy": masked_sum(entropy_BJ, mask_BJ),
    }
    return loss, count, metrics
