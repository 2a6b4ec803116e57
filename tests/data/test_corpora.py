"""Corpora by name: the standard library, complete or stripped."""

import pytest

from autollm_jax.data import corpora
from autollm_jax.data.corpora import load_corpus, read_stdlib
from autollm_jax.errors import UserError

TOPICS = {f"topic{i}": f"Topic {i}\n*****\n\nText of topic {i}.\n" * (i + 1) for i in range(20)}


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def library(tmp_path):
    root = tmp_path / "lib"
    for i in range(40):
        write(root, f"module{i}.py", f'"""Module {i}."""\n\n\ndef f():\n    """Do {i}."""\n')
    for i in range(5):
        write(root, f"package/tests/test_{i}.py", f"assert {i} == {i}\n")
    write(root, "latin.py", b"# caf\xe9\n")
    write(root, "site-packages/other/module.py", "foreign = True\n")
    write(root, "_sysconfigdata_machine.py", "path = '/home/someone'\n")
    return root


def read(root, packages=None, max_bytes=1_000_000):
    return read_stdlib(root, packages or {}, TOPICS, max_bytes=max_bytes)


def texts(corpus, domain):
    return corpus.documents[domain] + corpus.validation[domain]


@pytest.fixture(scope="module")
def capped():
    """This interpreter's library, 200,000 bytes of each domain."""
    return load_corpus("stdlib", max_bytes=200_000)


def test_this_interpreter_gives_six_domains_with_both_splits(capped):
    assert capped.domains == (
        "bytecode",
        "character_names",
        "docstrings",
        "language_reference",
        "library_code",
        "test_code",
    )
    assert all(capped.documents[domain] for domain in capped.domains)
    assert all(capped.validation[domain] for domain in capped.domains)


def test_bytecode_names_no_address_and_no_docstring(library):
    write(library, "shown.py", '"""A docstring."""\ndef f():\n    return {1, 2} | {"a", "b"}\n')
    (text,) = [t for t in corpora._bytecode({"shown.py": library / "shown.py"}, 10_000).values()]
    assert "code f" in text and "RETURN_VALUE" in text
    assert "0x" not in text and "A docstring" not in text


def test_loading_twice_gives_the_same_documents(library):
    first, second = read(library), read(library)
    assert first.documents == second.documents
    assert first.content_hash == second.content_hash


def test_content_hash_changes_with_one_character(library):
    before = read(library).content_hash
    write(library, "module3.py", '"""Module 3!"""\n\n\ndef f():\n    """Do 3."""\n')
    assert read(library).content_hash != before


def test_validation_is_about_a_twentieth_and_disjoint():
    corpus = load_corpus("stdlib", max_bytes=1_000_000)
    for domain, sizes in corpus.sizes().items():
        share = sizes["validation"] / (sizes["train"] + sizes["validation"])
        assert 0.03 < share <= 0.05, domain
        assert not set(corpus.documents[domain]) & set(corpus.validation[domain])


def test_cap_limits_each_domain(capped):
    for domain, sizes in capped.sizes().items():
        assert 100_000 < sum(sizes.values()) <= 200_000, domain


def test_a_module_serves_code_or_docstrings_and_never_both(library):
    corpus = read(library)
    code = "".join(texts(corpus, "library_code"))
    documented = "".join(texts(corpus, "docstrings"))
    for i in range(40):
        assert (f"Module {i}." in code) != (f"Module {i}." in documented)


def test_undecodable_and_foreign_files_are_left_out(library):
    corpus = read(library)
    everything = "".join(text for domain in corpus.domains for text in texts(corpus, domain))
    assert "caf" not in everything
    assert "foreign" not in everything
    assert "someone" not in everything


def test_stripped_library_borrows_the_tests_of_packages(library, tmp_path):
    write(tmp_path / "pkg", "core/tests/test_core.py", "assert 'borrowed'\n")
    write(tmp_path / "pkg", "core/code.py", "not_a_test = True\n")
    corpus = read(library, {"numpy": tmp_path / "pkg"})
    tests = "".join(texts(corpus, "test_code"))
    assert "borrowed" in tests and "assert 0 == 0" in tests and "not_a_test" not in tests
    assert "stripped" in corpus.description and "numpy" in corpus.description


def test_topics_contained_in_others_are_left_out(library):
    body = "A passage that stands in two places.\n"
    topics = {**TOPICS, "long": f"Long\n****\n\nBefore.\n\n{body}", "short": f"Short\n*\n\n{body}"}
    corpus = read_stdlib(library, {}, topics, max_bytes=1_000_000)
    assert "".join(texts(corpus, "language_reference")).count(body) == 1


@pytest.mark.parametrize("name", ["wikipedia", "tfds:", "", "stdlib/code"])
def test_unknown_name_lists_what_is_accepted(name):
    with pytest.raises(UserError, match="accepted: stdlib, tfds:NAME"):
        load_corpus(name)


def test_folder_without_a_library_is_an_explained_error(tmp_path):
    with pytest.raises(UserError, match="no Python files"):
        read(tmp_path)


def test_cap_below_one_document_is_an_explained_error(library):
    with pytest.raises(UserError, match="max_bytes=5"):
        read(library, max_bytes=5)
