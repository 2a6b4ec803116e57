"""Splitting and hashing of documents."""

from autollm_jax.data.corpus import make_corpus


def make(domains, validation=None):
    return make_corpus("c", version="1", description="", domains=domains, validation=validation)


def texts(count):
    return {f"path/{i}": f"text {i} " * 10 for i in range(count)}


def test_a_text_under_two_keys_is_kept_once():
    domain = texts(50)
    copies = {f"copy/{key}": text for key, text in domain.items()}
    corpus = make({"d": {**domain, **copies}})
    kept = corpus.documents["d"] + corpus.validation["d"]
    assert sorted(kept) == sorted(domain.values())


def test_given_validation_documents_lose_those_trained_on():
    corpus = make({"d": texts(5)}, {"d": {"a": "text 3 " * 10, "b": "another"}})
    assert corpus.validation["d"] == ("another",)


def test_the_split_depends_on_keys_and_not_on_their_order():
    domain = texts(100)
    backwards = dict(reversed(domain.items()))
    assert make({"d": domain}).validation == make({"d": backwards}).validation


def test_two_documents_give_one_to_each_split():
    corpus = make({"d": texts(2)})
    assert len(corpus.documents["d"]) == len(corpus.validation["d"]) == 1


def test_moving_a_document_between_splits_changes_the_hash():
    one = make({"d": {"a": "x", "b": "y"}}, {"d": {"c": "z"}})
    other = make({"d": {"a": "x"}}, {"d": {"b": "y", "c": "z"}})
    assert one.content_hash != other.content_hash


def test_domains_without_documents_are_dropped():
    assert make({"d": texts(3), "empty": {}}).domains == ("d",)
