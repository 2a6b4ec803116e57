"""Adds up the checked claims of methods' thinking: the true share and the unchecked share."""

from collections.abc import Mapping, Sequence

from autollm_jax.evaluation.summary import ALL

COUNTS = ("n", "true", "numbers", "unchecked", "words", "unread")


def summarise_claims(transcripts: Sequence[Mapping]) -> dict:
    """Add up the counts of claims that transcripts carry (one `text.claims.Audit` per turn).

    Returns:
      {METHOD: {TASK: {"true": share of the claims, "n": claims, "unchecked": share of the numbers
      outside every claim, "unread": share of the words that neither stand in a claim nor join
      two, "turns": turns}}}, with a TASK named `all`; a share of nothing is None. Methods whose
      transcripts carry no counts are left out.
    """
    totals: dict[str, dict[str, dict]] = {}
    for transcript in transcripts:
        for counts in transcript.get("claims", ()):
            for task in (transcript["task"], ALL):
                by_task = totals.setdefault(transcript["method"], {})
                total = by_task.setdefault(task, dict.fromkeys((*COUNTS, "turns"), 0))
                total["turns"] += 1
                for name in COUNTS:
                    total[name] += counts[name]
    return {
        method: {task: _shares(total) for task, total in sorted(by_task.items())}
        for method, by_task in totals.items()
    }


def _shares(total: Mapping) -> dict:
    return {
        "true": _share(total["true"], total["n"]),
        "n": total["n"],
        "unchecked": _share(total["unchecked"], total["numbers"]),
        "unread": _share(total["unread"], total["words"]),
        "turns": total["turns"],
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
