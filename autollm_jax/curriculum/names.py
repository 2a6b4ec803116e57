"""Names of dimensions and of mixtures' parts in experiments that are made up or changed."""

from collections.abc import Iterator, Sequence

import numpy as np

# Names of parts of mixtures: words, each of them one token of the vocabulary.
WORDS = (
    "arxiv books chat code dialogue essays europarl exams forum github gutenberg hacker instruct "
    "irc java jokes law letters lyrics mail manuals math medical news nih novels openweb papers "
    "patents philosophy physics pile poems proofs pubmed python qa recipes reddit reviews science "
    "scripts sms speech sports stack stories subtitles tables travel tweets ubuntu uspto web wiki"
).split()

# Names of hyperparameters that none of the tables has.
HYPERPARAMETERS = (
    "alpha beta2 decay_steps depth dropout epochs epsilon ffn_dim gamma grad_clip hidden lam "
    "label_smoothing lora_rank lr max_length min_lr mixup momentum n_heads noise_scale patch_size "
    "num_experts rank ratio rollouts rope_base scale seq_len sigma top_k top_p vocab warmup z_loss"
).split()


def part_names(
    random: np.random.Generator, count: int, also: Sequence[str] = ()
) -> tuple[str, ...]:
    """Draw different names of a mixture's parts; no two words are alike when cut short.

    Args:
      random: of the draw.
      count: the number of names; beyond the number of words they are part1, part2, ...
      also: names that may be drawn beside `WORDS`.
    """
    words = list({word[:6]: word for word in (*WORDS, *also)}.values())
    words += [f"part{number}" for number in range(1, count - len(words) + 1)]
    return tuple(random.choice(words, count, replace=False).tolist())


def invented_names(random: np.random.Generator) -> Iterator[str]:
    """Yield different names without end, like those in use: w7, top_k, tabo, peni3."""
    consonants, vowels, given = "bcdfghjklmnprstvwxz", "aeiou", set()

    def letter(of: str) -> str:
        return of[random.integers(len(of))]

    def syllables(count: int) -> str:
        return "".join(letter(consonants) + letter(vowels) for _ in range(count))

    while True:
        number = str(random.integers(1, 25))
        name = (
            letter(consonants + vowels) + number,
            HYPERPARAMETERS[random.integers(len(HYPERPARAMETERS))],
            syllables(2),
            syllables(int(random.integers(1, 3))) + number,
        )[random.integers(4)]
        if name not in given:
            given.add(name)
            yield name
