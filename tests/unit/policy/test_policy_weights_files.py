"""Files that LoadFromUri reads: only below the roots, only safetensors, nothing that isn't as it says."""

import json
import os

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from lm.digests import tensor_bytes
from lm.errors import InputError
from services.errors import InvalidInput, PreconditionFailed, ServiceError, UnknownName
from services.policy import weights_files
from services.policy.interface import TensorSpec
from services.policy.weights_files import MOST_HEADER_BYTES, tensor_chunks
from services.policy.weights_roots import WeightsRoots

A, B, C = torch.arange(12.0).reshape(3, 4), torch.arange(5.0), torch.ones(2, dtype=torch.bfloat16)
SPECS = {
    "a": TensorSpec("a", "float32", (3, 4)),
    "b": TensorSpec("b", "float32", (5,)),
    "c": TensorSpec("c", "bfloat16", (2,)),
}


@pytest.fixture
def root(tmp_path):
    """A root with model.safetensors of all three, and split/, which has them in two files."""
    root = tmp_path / "root"
    (root / "split").mkdir(parents=True)
    save_file({"a": A, "b": B, "c": C}, root / "model.safetensors", metadata={"format": "pt"})
    save_file({"a": A}, root / "split" / "model-1.safetensors")
    save_file({"b": B, "c": C}, root / "split" / "model-2.safetensors")
    (root / "split" / "config.json").write_text("{}")
    return root


def read(root, uri, names="abc"):
    uri = uri if ":" in uri else f"file://{root}/{uri}".rstrip("/")
    return b"".join(tensor_chunks(WeightsRoots([str(root)]), uri, [SPECS[name] for name in names]))


def expected(*tensors):
    return b"".join(bytes(tensor_bytes(tensor)) for tensor in tensors)


class TestGoodFiles:
    @pytest.mark.parametrize("uri", ["model.safetensors", "split", "split/", "./split", "split/%2E"])
    def test_a_file_or_a_folder_in_the_order_asked_for(self, root, uri):
        assert read(root, uri) == expected(A, B, C)
        assert read(root, uri, "cb") == expected(C, B)

    def test_in_chunks(self, root, monkeypatch):
        monkeypatch.setattr(weights_files, "CHUNK_BYTES", 16)
        chunks = tensor_chunks(WeightsRoots([str(root)]), f"file://{root}/model.safetensors", [SPECS["a"]])
        assert [len(chunk) for chunk in chunks] == [16, 16, 16]

    def test_a_name_with_signs_that_urls_escape(self, root):
        (root / "a b%").mkdir()
        save_file({"b": B}, root / "a b%" / "ü.safetensors")
        assert read(root, "a%20b%25/%C3%BC.safetensors", "b") == expected(B)

    def test_the_root_itself(self, root):
        assert read(root, "", "b") == expected(B)

    def test_links_as_a_hub_cache_has_them(self, root):
        (root / "blobs").mkdir()
        (root / "model.safetensors").rename(root / "blobs" / "0f3a")
        (root / "model.safetensors").symlink_to("blobs/0f3a")
        assert read(root, "model.safetensors") == expected(A, B, C)

    def test_a_root_that_is_a_link(self, root, tmp_path):
        (tmp_path / "link").symlink_to(root)
        roots = WeightsRoots([str(tmp_path / "link")])
        uri = f"file://{tmp_path}/link/model.safetensors"
        assert b"".join(tensor_chunks(roots, uri, [SPECS["b"]])) == expected(B)


class TestPlaces:
    def test_without_a_root_nothing_is_read(self, root):
        with pytest.raises(PreconditionFailed, match="--weights-root DIR") as refused:
            tensor_chunks(WeightsRoots(), f"file://{root}/model.safetensors", [])
        assert refused.value.kind == "ROOT"

    def test_a_root_that_is_not_there(self, root):
        with pytest.raises(InputError, match=r"--weights-root: '.*/nowhere' is no folder"):
            WeightsRoots([str(root), str(root / "nowhere")])

    @pytest.mark.parametrize(
        "uri",
        [
            "",
            "model.safetensors",
            "file:model.safetensors",
            "file:",
            "http://host/model.safetensors",
            "s3://bucket/model.safetensors",
            "file://host/model.safetensors",
            "file:///model.safetensors?x",
            "file:///model.safetensors#x",
            "file://[/model",
            "hdfs:///model",
        ],
    )
    def test_only_file_uris(self, root, uri):
        with pytest.raises(InvalidInput, match=r"uri: (isn't file:///PATH|can't be read)"):
            tensor_chunks(WeightsRoots([str(root)]), uri, [])

    @pytest.mark.parametrize("path", ["../root/model.safetensors", "split/%2e%2e/model.safetensors", "a%00b"])
    def test_no_way_up(self, root, path):
        with pytest.raises(InvalidInput, match=r"uri: holds '\.\.' or a zero byte"):
            read(root, path)

    def test_nothing_elsewhere(self, root, tmp_path):
        """Whether it is there or not: the answer doesn't tell."""
        save_file({"b": B}, tmp_path / "other.safetensors")
        (tmp_path / "rootless").mkdir()
        for path in (
            tmp_path / "other.safetensors",
            tmp_path / "none",
            tmp_path / "rootless",
            "/etc/passwd",
            "/",
        ):
            with pytest.raises(InvalidInput, match="leads to no place below a --weights-root"):
                read(root, f"file://{path}")

    def test_links_that_lead_out(self, root, tmp_path):
        save_file({"b": B}, tmp_path / "other.safetensors")
        (root / "link.safetensors").symlink_to(tmp_path / "other.safetensors")
        (root / "folder").symlink_to(tmp_path)
        (root / "split" / "out.safetensors").symlink_to("/etc/passwd")
        for path in ("link.safetensors", "folder", "folder/other.safetensors", "split"):
            with pytest.raises(InvalidInput, match="leads to no place below"):
                read(root, path, "b")

    def test_a_folder_that_becomes_a_link_after_it_was_checked(self, root, tmp_path, monkeypatch):
        save_file({"b": B}, tmp_path / "model.safetensors")
        real = str(root / "split" / "model.safetensors")
        monkeypatch.setattr(os.path, "realpath", lambda path: real if "split" in str(path) else str(path))
        roots = WeightsRoots([str(root)])
        (root / "split").rename(root / "was")
        (root / "split").symlink_to(tmp_path)
        with pytest.raises((PreconditionFailed, UnknownName)):
            tensor_chunks(roots, f"file://{real}", [SPECS["b"]])

    def test_a_link_to_itself(self, root):
        (root / "loop.safetensors").symlink_to("loop.safetensors")
        with pytest.raises(PreconditionFailed, match="can't be read"):
            read(root, "loop.safetensors")

    def test_what_is_not_there(self, root):
        for path in ("none.safetensors", "model.safetensors/more.safetensors"):
            with pytest.raises(UnknownName, match="no file"):
                read(root, path)

    def test_pipes_and_devices(self, root):
        os.mkfifo(root / "pipe.safetensors")
        with pytest.raises(InvalidInput, match=r"pipe\.safetensors is neither a file nor a folder"):
            read(root, "pipe.safetensors")
        with pytest.raises(InvalidInput, match="null is neither a file nor a folder"):
            tensor_chunks(WeightsRoots(["/dev"]), "file:///dev/null", [])

    def test_a_folder_named_like_a_file(self, root):
        (root / "split" / "odd.safetensors").mkdir()
        with pytest.raises(PreconditionFailed, match=r"odd\.safetensors can't be read: Is a directory"):
            read(root, "split")

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "safetensors"])
    def test_nothing_but_safetensors(self, root, name):
        torch.save({"b": B}, root / name)
        with pytest.raises(InvalidInput, match=rf"{name} is no \.safetensors file; pickle is never read"):
            read(root, name)

    def test_a_folder_of_pickles(self, root):
        (root / "old").mkdir()
        torch.save({"b": B}, root / "old" / "pytorch_model.bin")
        with pytest.raises(InvalidInput, match=r"holds 0 \.safetensors files.*pickle never"):
            read(root, "old")

    def test_a_folder_of_too_many(self, root, monkeypatch):
        monkeypatch.setattr(weights_files, "MOST_FILES", 1)
        with pytest.raises(InvalidInput, match=r"holds 2 .*, not 1 to 1"):
            read(root, "split")


def write(root, header, data=b"", length=None):
    """A file with that header, as bytes or to be made JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    (root / "odd.safetensors").write_bytes(length.to_bytes(8, "little") + text + data)


def entry(dtype="F32", shape=(5,), offsets=(0, 20)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


class TestWhatIsNotAsItSays:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "has a header that can't be read"),
            (b"\x01", "has a header that can't be read"),
            (b"\xff" * 8, "says that 18446744073709551615 of them are its header"),
            ((9).to_bytes(8, "little") + b"{}", "is 10 bytes long; by its header|can't be read"),
            (b"PK\x03\x04" + b"\0" * 40, "of them are its header"),
            (b"\x80\x02}q\x00." + b"x" * 100, "of them are its header"),
        ],
    )
    def test_no_safetensors_at_all(self, root, data, words):
        (root / "odd.safetensors").write_bytes(data)
        with pytest.raises(PreconditionFailed, match=words):
            read(root, "odd.safetensors")

    def test_a_header_too_large_to_be_one_is_not_read(self, root, monkeypatch):
        with (root / "odd.safetensors").open("wb") as file:
            file.write((MOST_HEADER_BYTES + 1).to_bytes(8, "little"))
            file.truncate(10 * 2**40)  # 10 TB, of which the disk holds a block
        lengths = []
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, count, at: lengths.append(count) or pread(fd, count, at))
        with pytest.raises(PreconditionFailed, match="is 10995116277760 bytes long and says that 4194305"):
            read(root, "odd.safetensors")
        assert lengths == [8]

    @pytest.mark.parametrize(
        "header",
        [
            b"not JSON",
            b"\xff\xfe",
            b"[" * 100_000,
            b"9" * 5000,
            [],
            None,
            {"b": None},
            {"b": {}},
            {"b": entry() | {"shape": None}},
            {"b": entry(dtype=["F32"])},
            {"b": entry(offsets=(0,))},
            {"b": entry(offsets=(0, float("inf")))},
            {"b": entry(offsets=("x", "y"))},
        ],
    )
    def test_a_header_that_is_none(self, root, header):
        write(root, header, bytes(20))
        with pytest.raises(
            PreconditionFailed, match=r"odd\.safetensors has a header that can't be read"
        ) as refused:
            read(root, "odd.safetensors", "b")
        assert (refused.value.kind, refused.value.subject) == ("FILE", "odd.safetensors")

    @pytest.mark.parametrize(
        ("offsets", "data"), [((0, 20), 19), ((0, 20), 21), ((0, 1 << 63), 20), ((0, 0), 20)]
    )
    def test_more_or_less_than_its_header_says(self, root, offsets, data):
        write(root, {"b": entry(offsets=offsets)}, bytes(data))
        with pytest.raises(PreconditionFailed, match="bytes long; by its header it has"):
            read(root, "odd.safetensors", "b")

    @pytest.mark.parametrize("offsets", [(20, 20), (20, 0), (16, 20), (-1000, 20)])
    def test_a_tensor_elsewhere_than_it_says(self, root, offsets):
        write(root, {"b": entry(offsets=offsets), "rest": entry()}, bytes(20))
        with pytest.raises(PreconditionFailed, match="doesn't hold the 20 bytes of 'b' where it says"):
            read(root, "odd.safetensors", "b")

    @pytest.mark.parametrize(
        ("stored", "words"),
        [
            ({"x": entry()}, "no file holds tensor 'b'"),
            ({"b": entry("F64")}, r"'b' is float32\[5\] in the manifest and float64\[5\] in odd"),
            ({"b": entry("I64")}, r"'b' is float32\[5\] in the manifest and another\[5\] in odd"),
            ({"b": entry(shape=(1, 5))}, r"and float32\[1, 5\] in odd"),
            ({"b": entry(shape=(1 << 63, 1 << 63))}, "and float32"),
        ],
    )
    def test_another_tensor_than_in_the_manifest(self, root, stored, words):
        write(root, stored, bytes(20))
        with pytest.raises(PreconditionFailed, match=words) as refused:
            read(root, "odd.safetensors", "b")
        assert (refused.value.kind, refused.value.subject) == ("MANIFEST", "manifest.tensors[0]")

    def test_the_same_tensor_twice(self, root):
        save_file({"c": C}, root / "split" / "more.safetensors")
        with pytest.raises(PreconditionFailed, match=r"more\.safetensors holds 'c', as another file"):
            read(root, "split")

    def test_a_file_that_shrinks_while_it_is_read(self, root):
        path = root / "model.safetensors"
        chunks = tensor_chunks(WeightsRoots([str(root)]), f"file://{path}", [SPECS["a"]])
        os.truncate(path, path.stat().st_size - 70)
        with pytest.raises(PreconditionFailed, match="has become shorter while it was read"):
            b"".join(chunks)

    def test_a_file_that_is_gone_when_it_is_read(self, root):
        path = root / "model.safetensors"
        chunks = tensor_chunks(WeightsRoots([str(root)]), f"file://{path}", [SPECS["a"]])
        path.unlink()
        with pytest.raises(UnknownName):
            next(chunks)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "I8", 3]) | JSON, "shape": JSON, "data_offsets": JSON}
)


@given(
    header=st.binary(max_size=64) | st.dictionaries(st.sampled_from("ab_"), ENTRY | JSON, max_size=3),
    length=st.none() | st.integers(0, 2**64 - 1),
    data=st.binary(max_size=30),
)
@settings(max_examples=100, deadline=None)
def test_whatever_is_in_a_file_is_refused_in_words(tmp_path_factory, header, length, data):
    root = tmp_path_factory.getbasetemp() / "fuzzed"
    root.mkdir(exist_ok=True)
    write(root, header, data, length)
    try:
        found = read(root, "odd.safetensors", "b")
    except ServiceError:
        return
    assert len(found) == SPECS["b"].nbytes
