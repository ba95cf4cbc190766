"""Compressed layers: every form is read, every damage is named, memory stays bounded."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore.errors import SourceInvalid
from layerstore.oci.compression import Stream, decompress
from tests.layerstore.archives import digest_of

DATA = random.Random(1).randbytes(150_000) + bytes(3_000_000) + b"end" * 1000


def skippable(data: bytes) -> bytes:
    """A zstd frame that holds no data."""
    return b"\x5a\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


def in_frames(data: bytes) -> bytes:
    """Several zstd frames of every shape, as zstd:chunked writes them."""
    plain = zstandard.ZstdCompressor()
    checked = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=False)
    return b"".join(
        (
            skippable(b"first"),
            plain.compress(data[:1]),
            checked.compress(data[1:100_000]),
            plain.compress(b""),
            skippable(b""),
            checked.compress(data[100_000:]),
            skippable(b"table of contents"),
        )
    )


FORMS = {
    "plain": DATA,
    "gzip": gzip.compress(DATA),
    "gzip members": gzip.compress(DATA[:70_000], 1) + gzip.compress(DATA[70_000:], 9),
    "gzip padded": gzip.compress(DATA) + bytes(5000),
    "gzip empty members": gzip.compress(b"") + gzip.compress(DATA) + gzip.compress(b""),
    "gzip exact chunk": gzip.compress(DATA[: 1 << 20]) + gzip.compress(DATA[1 << 20 :]),
    "zstd": zstandard.ZstdCompressor().compress(DATA),
    "zstd frames": in_frames(DATA),
    "zstd long": zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27)
    ).compress(DATA),
}


class Dribble(io.BytesIO):
    """Gives fewer bytes than asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 1009))


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    blob = FORMS[form]
    assert b"".join(decompress(io.BytesIO(blob), "layer")) == DATA
    assert b"".join(decompress(Dribble(blob), "layer")) == DATA
    with Stream(io.BytesIO(blob), "layer") as stream:
        pieces = [stream.read(1), stream.read(0), stream.read(512)]
        while piece := stream.read(77_777):
            pieces.append(piece)
        assert b"".join(pieces) == DATA
        assert stream.digest == digest_of(DATA)
        assert (stream.blob_digest, stream.blob_size) == (digest_of(blob), len(blob))
        assert stream.size == len(DATA)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "plain"])
def test_cut_short(form: str) -> None:
    blob = FORMS[form].rstrip(b"\0") if form == "gzip padded" else FORMS[form]
    lengths = {*range(3, 60), *range(len(blob) - 40, len(blob)), len(blob) // 2}
    whole = 0
    for length in sorted(lengths):
        try:
            assert b"".join(decompress(io.BytesIO(blob[:length]), "layer")) != DATA or form in (
                "gzip empty members",
                "zstd frames",
            )
            whole += 1  # cut between members: the digest tells
        except SourceInvalid as error:
            assert "cut short" in str(error) or "follows" in str(error)  # noqa: PT017
    assert whole <= 4


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_damage(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(sorted(FORMS)))
    blob = bytearray(FORMS[form])
    where = data.draw(st.integers(0, min(len(blob) - 1, 20_000)))
    blob[where] ^= data.draw(st.integers(1, 255))
    try:
        assert digest_of(b"".join(decompress(io.BytesIO(bytes(blob)), "layer"))) is not None
    except SourceInvalid as error:
        assert str(error).startswith("layer: ")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (bz2.compress(b"x"), "bzip2"),
        (lzma.compress(b"x"), "xz"),
        (gzip.compress(b"x", mtime=0) + b"tail", "something follows"),
        (zstandard.ZstdCompressor().compress(b"x") + b"tail", "something follows"),
    ],
    ids=["bzip2", "xz", "gzip and more", "zstd and more"],
)
def test_refused(blob: bytes, message: str) -> None:
    with pytest.raises(SourceInvalid, match=message):
        list(decompress(io.BytesIO(blob), "layer"))


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_bombs_take_no_memory(kind: str) -> None:
    zeros = 100 << 20
    pack = gzip.compress if kind == "gzip" else zstandard.ZstdCompressor().compress
    blob = pack(bytes(zeros))
    tracemalloc.start()
    try:
        with Stream(io.BytesIO(blob), "layer") as stream:
            while stream.read(1 << 20):
                pass
            assert stream.size == zeros
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_an_error_of_the_source_arrives() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, os.strerror(5))

    with Stream(Broken(), "layer") as stream, pytest.raises(OSError, match="Input/output"):
        stream.read(1)


def test_leaving_early_ends_the_thread() -> None:
    with Stream(io.BytesIO(bytes(64 << 20)), "layer") as stream:
        stream.read(10)
    assert not stream._thread.is_alive()
