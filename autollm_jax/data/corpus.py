"""The corpus: domains of documents, split into training and validation, with a content hash."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping

VALIDATION_SHARE = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Text by domain, split into training and validation documents.

    Attributes:
      name: The name that `load_corpus` was given.
      version: The version of its source.
      description: One line about its content, and about any departure from the usual content.
      content_hash: SHA-256 over every document, its domain and its split.
      documents: Training documents by domain.
      validation: Validation documents by domain. None of them is also a training document.
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
      domains: Documents by domain and key (a relative path, an index). Empty domains are dropped,
        and so are repeated texts within a domain.
      validation: Validation documents of the source; those that are also training documents are
        dropped. None takes about 5 % of each domain's bytes, chosen by the hashes of the keys.

    Returns:
      The corpus, with the documents in the order of their keys.
    """
    # Drop repeated texts: a text under two keys could fall into both splits.
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
    """Keep each text once, under its first key; drop the texts in `taken`."""
    seen, kept = set(taken), {}
    for key in sorted(texts):
        if texts[key] not in seen:
            seen.add(texts[key])
            kept[key] = texts[key]
    return kept


def _validation_part(texts: Mapping[str, str]) -> dict[str, str]:
    """Choose documents in the order of their keys' hashes, up to the validation share of bytes."""
    sizes = {key: len(text.encode("utf-8")) for key, text in texts.items()}
    left = VALIDATION_SHARE * sum(sizes.values())
    part = {}
    for key in sorted(texts, key=digest):
        # Skip a document that exceeds the rest of the share: it alone would set the split's size.
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
