"""Names of mixtures' parts in experiments that are made up or changed."""

from collections.abc import Sequence

import numpy as np

# Names of parts of mixtures: words, each of them one token of the vocabulary.
WORDS = (
    "arxiv books chat code dialogue essays europarl exams forum github gutenberg hacker instruct "
    "irc java jokes law letters lyrics mail manuals math medical news nih novels openweb papers "
    "patents philosophy physics pile poems proofs pubmed python qa recipes reddit reviews science "
    "scripts sms speech sports stack stories subtitles tables travel tweets ubuntu uspto web wiki"
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
