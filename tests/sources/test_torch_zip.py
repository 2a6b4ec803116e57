import pickle
import struct
import zipfile

import numpy as np
import pytest

from autollm_jax.errors import UserError
from autollm_jax.sources.torch_zip import read_tensors
from tests.sources import torch_files as made

ARRAYS = {"fc1.weight": np.arange(6.0).reshape(2, 3), "fc1.bias": np.array([0.5, -1.5])}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "perplexity_s.pt"


def refuse(path, message="") -> str:
    with pytest.raises(UserError, match=message) as error:
        read_tensors(path)
    line = str(error.value)
    assert "\n" not in line and path.name in line and "nothing in it was executed" in line
    return line


def refuse_pickle(path, data, message):
    refuse(made.torch_file(path, ARRAYS, **{"data.pkl": data}), message)


def test_tensors_are_read_by_name_shape_and_place(path):
    tensors = read_tensors(made.torch_file(path, ARRAYS))
    assert list(tensors) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], array)


def test_tensors_may_share_a_storage(path):
    items = {"a": made.tensor("0", [2], [1], 0, 6), "b": made.tensor("0", [2, 2], [2, 1], 2, 6)}
    data = np.arange(6, dtype="<f4").tobytes()
    made.write_zip(path, {"data.pkl": made.state_dict(items), "data/0": data})
    tensors = read_tensors(path)
    np.testing.assert_array_equal(tensors["a"], [0, 1])
    np.testing.assert_array_equal(tensors["b"], [[2, 3], [4, 5]])


class Malicious:
    """What runs a command when it is unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_executes_nothing(path, tmp_path, protocol):
    import os

    trace = tmp_path / "executed"
    data = pickle.dumps({"fc1.weight": Malicious(os.system, f"touch {trace}")}, protocol)
    refuse_pickle(path, data, "data.pkl")
    assert not trace.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02ctorch\nload\n)R.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        b"(S'true'\niposix\nsystem\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02Pname\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
    ],
)
def test_other_ways_to_call_something_are_refused(path, data):
    refuse_pickle(path, data, "data.pkl")


GOOD = made.tensor("0", [2, 3], [3, 1])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (made.tensor("0", [2, 3], [1, 2]), "not contiguous"),
        (made.tensor("0", [2, 3], [0, 0]), "not contiguous"),
        (made.tensor("0", [2, 3], [3]), "not contiguous"),
        (made.tensor("0", [2, 3], [3, 1], offset=1), "beyond its storage"),
        (made.tensor("0", [2, 3], [3, 1], offset=-1), "beyond its storage"),
        (made.tensor("0", [-2, 3], [3, 1], size=6), "beyond its storage"),
        (made.tensor("0", [4, 3], [3, 1], size=6), "beyond its storage"),
        (made.tensor("0", [2, 3], [3, 1], size=-1), "storage of f32"),
        (made.tensor("9", [2, 3], [3, 1]), "data/9, of 6 floats, is missing"),
        (made.tensor("1", [2, 3], [3, 1]), "data/1, of 6 floats, is missing or of other size"),
        (made.tensor("../0", [2, 3], [3, 1]), "storage of f32"),
        (made.tensor("0", [2, 3], [3, 1], storage=b"ctorch\nHalfStorage\n"), "torch HalfStorage"),
        (made.tensor("0", [2, 3], [3, 1], storage=made.text("x")), "storage of f32"),
        (made.integer(3), "is no tensor"),
        (b"}", "is no tensor"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "something else than a dict or a tensor"),
        (b"h\x63", "refers to what it has not put down"),
        (b"u", "it takes up to a mark that is not there|sets items of no dict"),
        (GOOD + made.text("a") + GOOD, "comes twice"),
        (GOOD + made.integer(3) + GOOD, "a key that is no text"),
    ],
)
def test_a_tensor_that_is_not_plain_is_refused(path, value, message):
    refuse_pickle(path, made.state_dict({"a": value}), message)


@pytest.mark.parametrize(
    "data", [b"", b".", b"\x80\x02", b"\x80\x02).", b"\xff\xfe", b"\x80\x02b."]
)
def test_a_pickle_that_is_none_is_refused(path, data):
    refuse_pickle(path, data, "not a PyTorch file")


@pytest.mark.parametrize("part", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_truncated_file_is_refused(path, part):
    data = made.torch_file(path, ARRAYS).read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    refuse(path, "truncated")


def test_no_single_changed_byte_does_any_harm(path):
    data = made.torch_file(path, {"fc1.bias": np.array([0.5, -1.5])}).read_bytes()
    read = 0
    for place in range(0, len(data), 3):
        changed = bytearray(data)
        changed[place] ^= 0x41
        path.write_bytes(changed)
        try:
            read += set(read_tensors(path)) > set()
        except UserError as error:
            assert "\n" not in str(error)
    assert read > 0  # names of members that nobody reads, time stamps


@pytest.mark.parametrize("member", ["data/0", "data.pkl"])
def test_a_compressed_member_is_refused_however_large_it_declares_itself(path, member):
    members = {"data.pkl": b".", "data/0": b""} | {member: bytes(1 << 20)}
    made.write_zip(path, members, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 4000
    refuse(path, "a member of the zip is compressed")


def test_a_stored_member_that_declares_too_much_is_refused(path):
    made.torch_file(path, ARRAYS)
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02")
    data[place + 20 : place + 28] = struct.pack("<II", 1 << 31, 1 << 31)
    path.write_bytes(data)
    refuse(path, "declare over 64 MiB")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"byteorder": b"big"}, "its byte order is not little-endian"),
        ({"data/0": b"\0" * 20}, "is missing or of other size"),
        ({"data.pkl": b"." + bytes(1 << 20)}, "data.pkl has over 1 MiB"),
    ],
)
def test_a_member_that_is_not_as_published_is_refused(path, changes, message):
    refuse(made.torch_file(path, ARRAYS, **changes), message)


def test_other_files_are_refused(path, tmp_path):
    path.write_bytes(b"lr,bs\n1,2\n")
    refuse(path, "not a zip file")
    made.write_zip(path, {"readme.txt": b"hello"})
    refuse(path, "0 members NAME/data.pkl")
    path.write_bytes(pickle.dumps([1, 2, 3]))
    refuse(path, "not a zip file")
    refuse(tmp_path / "nowhere.pt", "No such file")
