"""Rows that begin alike: what they share is computed once, and attention sees whole rows.

Members of a GRPO group answer one prompt. All of a layer but its attention treats tokens one by
one, so that a group's prompt need not be multiplied with the weights once for each member.

Letters: B = N * G rows, N groups, G members, T tokens of a row, P of them shared. A group has
L = P + G * (T - P) tokens, each once: the shared ones, then those of each member.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class SharedPrefix:
    """Rows come in groups of `members` neighbours whose first `tokens` tokens are the same.

    So are their positions and segments there. By default nothing is shared.
    """

    members: int = 1
    tokens: int = 0

    def computed_share(self, length: int) -> float:
        """Return the share of the tokens of rows of this length that `together` keeps."""
        return 1 - self.tokens / length * (1 - 1 / self.members)

    def together(self, x_BT: jax.Array) -> jax.Array:
        """Return each group's tokens once, [N, L]; any axes behind T."""
        G, P = self.members, self.tokens
        if G == 1:
            return x_BT
        B, T, *rest = x_BT.shape
        x_NGT = x_BT.reshape(B // G, G, T, *rest)
        own_NS = x_NGT[:, :, P:].reshape(B // G, G * (T - P), *rest)
        return jnp.concatenate([x_NGT[:, 0, :P], own_NS], axis=1)

    def apart(self, x_NL: jax.Array) -> jax.Array:
        """Return whole rows, [B, T], from `together`'s result; any axes behind L."""
        G, P = self.members, self.tokens
        if G == 1:
            return x_NL
        N, L, *rest = x_NL.shape
        own_NGS = x_NL[:, P:].reshape(N, G, (L - P) // G, *rest)
        shared_NGP = jnp.broadcast_to(x_NL[:, None, :P], (N, G, P, *rest))
        return jnp.concatenate([shared_NGP, own_NGS], axis=2).reshape(N * G, -1, *rest)


NOTHING_SHARED = SharedPrefix()
