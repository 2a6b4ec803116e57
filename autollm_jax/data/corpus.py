"""What a corpus is: domains of documents, split once, with a hash of the whole content."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping

VALIDATION_SHARE = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Text by domain, split into training and validation documents.

    Attributes:
      name: What it was loaded by.
      version: The version of what it was read from.
      description: One line: what it is, and where it departs from its usual content.
      content_hash: SHA-256 over every document, its domain and its split.
      documents: Training documents by domain.
      validation: Validation documents by domain; none of them is a training document.
    """

    name: str
    version: str
    description: str
    content_hash: str
    documents: dict[str, tuple[str, ...]]
    validation: dict[str, tuple[str, ...]]

    @property
    def domains(self) -> tuple[str, ...]:
        """Return the domains' names, sorted."""
        return tuple(self.documents)

    def split(self, name: str) -> dict[str, tuple[str, ...]]:
        """Return the documents of the split "train" or "validation" by domain."""
        return {"train": self.documents, "validation": self.validation}[name]

    def sizes(self) -> dict[str, dict[str, int]]:
        """Return UTF-8 bytes by domain and split."""
        return {
            domain: {
                split: sum(len(text.encode("utf-8")) for text in self.split(split)[domain])
                for split in ("train", "validation")
            }
            for domain in self.domains
        }


def make_corpus(
    name: str,
    *,
    version: str,
    description: str,
    domains: Mapping[str, Mapping[str, str]],
    validation: Mapping[str, Mapping[str, str]] | None = None,
) -> Corpus:
    """Split and hash documents.

    Args:
      name: The corpus' name.
      version: The version of its source.
      description: One line on its content.
      domains: Documents by domain and key (a relative path, an index); empty domains are dropped,
        and so is a text that stands in its domain before.
      validation: Validation documents, where the source has its own (less those that are training
        documents too); else about 5 % of each domain's bytes, chosen by the keys' hashes.

    Returns:
      The corpus; documents are in the order of their keys.
    """
    # One text under two keys could fall into both splits.
    domains = {domain: _distinct(domains[domain]) for domain in sorted(domains) if domains[domain]}
    if validation is None:
        held_out = {domain: _validation_part(texts) for domain, texts in domains.items()}
        domains = {
            domain: {key: text for key, text in texts.items() if key not in held_out[domain]}
            for domain, texts in domains.items()
        }
    else:
        held_out = {
            domain: _distinct(validation.get(domain, {}), taken=texts.values())
            for domain, texts in domains.items()
        }
    documents, held_out = _ordered(domains), _ordered(held_out)
    return Corpus(
        name=name,
        version=version,
        description=description,
        content_hash=_content_hash(documents, held_out),
        documents=documents,
        validation=held_out,
    )


def digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _distinct(texts: Mapping[str, str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Keep the first key of each text, and no text that is taken."""
    seen, kept = set(taken), {}
    for key in sorted(texts):
        if texts[key] not in seen:
            seen.add(texts[key])
            kept[key] = texts[key]
    return kept


def _validation_part(texts: Mapping[str, str]) -> dict[str, str]:
    """Take documents in the order of their keys' hashes until they hold the validation share."""
    sizes = {key: len(text.encode("utf-8")) for key, text in texts.items()}
    left = VALIDATION_SHARE * sum(sizes.values())
    part = {}
    for key in sorted(texts, key=digest):
        # A document larger than what is left would make the share depend on one draw.
        if sizes[key] <= left:
            part[key] = texts[key]
            left -= sizes[key]
    if not part and len(texts) > 1:
        smallest = min(texts, key=lambda key: (sizes[key], key))
        part[smallest] = texts[smallest]
    return part


def _ordered(domains: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    return {domain: tuple(texts[key] for key in sorted(texts)) for domain, texts in domains.items()}


def _content_hash(*splits: Mapping[str, tuple[str, ...]]) -> str:
    total = hashlib.sha256()
    for split in splits:
        total.update(b"split")
        for domain, texts in split.items():
            total.update(f"domain {domain} {len(texts)}".encode())
            for text in texts:
                total.update(bytes.fromhex(digest(text)))
    return total.hexdigest()
