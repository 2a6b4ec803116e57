"""Markdown of the pages that scripts write."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table.

    >>> table(("a", "b"), [("1", "2")])
    '| a | b |\\n| --- | --- |\\n| 1 | 2 |\\n'
    """
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def with_section(page: str, heading: str, text: str) -> str:
    """Return a page with its section replaced, or with one at its end.

    >>> with_section("# A\\n\\n## B\\n\\nold\\n\\n## C\\n", "## B", "## B\\n\\nnew\\n")
    '# A\\n\\n## B\\n\\nnew\\n\\n## C\\n'
    """
    before, found, rest = page.partition(f"{heading}\n")
    if not found:
        return f"{page.rstrip()}\n\n{text}"
    _, later, after = rest.partition("\n## ")
    return f"{before}{text}{later}{after}"
