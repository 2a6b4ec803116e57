"""Steps of GRPO by Tunix's GRPOLearner, on one device, with its own sampler ("vanilla")."""

import importlib.metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from autollm_jax.benchmarks import smollm2
from autollm_jax.benchmarks.grpo import CLIP_NORM, LEARNING_RATE, Sizes
from autollm_jax.benchmarks.rewarded import Rewarded
from autollm_jax.benchmarks.timing import BENCHMARKS, library
from autollm_jax.benchmarks.turns import Stopwatch
from autollm_jax.models.transformer import TransformerConfig


class Steps(Rewarded):
    """The learner; `train` makes all its steps. `version` is Tunix's."""

    def __init__(
        self,
        model: TransformerConfig,
        folder: Path,
        prompts: list[list[int]],
        sizes: Sizes,
        steps: int,
        watch: Stopwatch,
    ):
        learners, clusters = _tunix("rl.grpo.grpo_learner"), _tunix("rl.rl_cluster")
        self.version = f"Tunix {importlib.metadata.version('google-tunix')}"
        super().__init__(sizes, watch)
        self._steps = steps
        self._texts = np.array([smollm2.text_of(prompt) for prompt in prompts])
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
        self._model = _load(model, folder, mesh)

        def reward(prompts, completions, **_):
            rows = [
                smollm2.tokens_of(f"{prompt} {answer}")
                for prompt, answer in zip(prompts, completions, strict=True)
            ]
            return self.reward(rows)

        optimizer = optax.chain(
            optax.clip_by_global_norm(CLIP_NORM), optax.adamw(LEARNING_RATE, b2=0.95)
        )
        cluster = clusters.RLCluster(
            actor=self._model,
            tokenizer=smollm2.tokenizer(model),
            cluster_config=clusters.ClusterConfig(
                role_to_mesh={role: mesh for role in clusters.Role},
                rollout_engine="vanilla",
                training_config=clusters.RLTrainingConfig(
                    actor_optimizer=optimizer,
                    eval_every_n_steps=steps + 1,
                    max_steps=steps,
                    mini_batch_size=sizes.groups,
                    train_micro_batch_size=sizes.groups,
                ),
                rollout_config=_tunix("rl.rollout.base_rollout").RolloutConfig(
                    max_tokens_to_generate=sizes.answer,
                    max_prompt_length=sizes.prompt,
                    kv_cache_size=sizes.length,
                    temperature=1.0,
                    top_p=1.0,
                    top_k=None,
                ),
            ),
        )
        self._learner = learners.GRPOLearner(
            rl_cluster=cluster,
            reward_fns=reward,
            algo_config=learners.GRPOConfig(
                num_generations=sizes.members, num_iterations=1, beta=0.0, epsilon=0.2
            ),
        )

    def train(self) -> None:
        """Make all steps."""
        self._learner.train(self._batches())
        self._end()

    def _batches(self):
        """Yield the prompts of each step; Tunix asks for the next ones when a step has ended."""
        for step in range(self._steps):
            if step:
                self._end()
            self._watch.begin()
            yield {"prompts": self._texts}

    def _end(self) -> None:
        jax.block_until_ready(library("flax").nnx.state(self._model))
        self._watch.end()

    def logits(self, tokens_BT) -> np.ndarray:
        """Return the model's logits [B, T, V]."""
        B, T = np.shape(tokens_BT)
        positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
        causal_BTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
        tokens_BT = jnp.asarray(tokens_BT)
        return np.asarray(self._model(tokens_BT, positions_BT, None, causal_BTT)[0])


def _tunix(module: str):
    return library(f"tunix.{module}", BENCHMARKS)


def _load(model: TransformerConfig, folder: Path, mesh):
    """Load the model from a safetensors folder, in f32, nothing computed again in updates."""
    models = _tunix("models.llama3.model")
    shape = models.ModelConfig(
        num_layers=model.layers,
        vocab_size=model.vocab_size,
        embed_dim=model.width,
        hidden_dim=model.mlp_width,
        num_heads=model.heads,
        head_dim=model.head_dim,
        num_kv_heads=model.kv_heads,
        rope_theta=int(model.rope_theta),
        norm_eps=model.norm_epsilon,
        weight_tying=model.tied_embeddings,
    )
    return _tunix("models.llama3.params").create_model_from_safe_tensors(
        str(folder), shape, mesh, dtype=jnp.float32
    )
