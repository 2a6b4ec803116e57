"""Steps of GRPO by TRL's GRPOTrainer, on one device, with `generate` of `transformers`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from autollm_jax.benchmarks import smollm2
from autollm_jax.benchmarks.grpo import CLIP_NORM, LEARNING_RATE, Sizes
from autollm_jax.benchmarks.rewarded import Rewarded
from autollm_jax.benchmarks.timing import BENCHMARKS, cores, library
from autollm_jax.benchmarks.turns import Stopwatch
from autollm_jax.models.transformer import TransformerConfig


class Steps(Rewarded):
    """The trainer; `train` makes all its steps. `version` is TRL's."""

    def __init__(
        self,
        model: TransformerConfig,
        folder: Path,
        prompts: list[list[int]],
        sizes: Sizes,
        steps: int,
        watch: Stopwatch,
    ):
        trl, torch = library("trl", BENCHMARKS), library("torch")  # the former brings the latter
        transformers = library("transformers")
        torch.set_num_threads(cores())
        super().__init__(sizes, watch)
        self.version = f"TRL {trl.__version__}"
        self._torch = torch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

        class Watch(transformers.TrainerCallback):
            def on_step_begin(self, *_, **__):
                watch.begin()

            def on_step_end(self, *_, **__):
                watch.end()

        def reward(prompts, completion_ids, **_):
            rows = [
                smollm2.tokens_of(text) + list(ids)
                for text, ids in zip(prompts, completion_ids, strict=True)
            ]
            return self.reward(rows)

        settings = trl.GRPOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=sizes.rows,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            num_generations=sizes.members,
            max_completion_length=sizes.answer,
            pad_to_multiple_of=None,
            temperature=1.0,
            beta=0.0,
            num_iterations=1,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            max_grad_norm=CLIP_NORM,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            shuffle_dataset=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        texts = [smollm2.text_of(prompt) for prompt in prompts]
        self._trainer = trl.GRPOTrainer(
            model=self._model,
            reward_funcs=reward,
            args=settings,
            train_dataset=library("datasets", BENCHMARKS).Dataset.from_dict({"prompt": texts}),
            processing_class=smollm2.tokenizer(model),
            callbacks=[Watch()],
        )
        self.train: Callable[[], object] = self._trainer.train

    def logits(self, tokens_BT) -> np.ndarray:
        """Return the model's logits [B, T, V]."""
        with self._torch.inference_mode():
            return self._model(self._torch.tensor(np.asarray(tokens_BT))).logits.float().numpy()
