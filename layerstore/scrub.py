"""scrub: whether objects still are what their names say, read from the disk.

By SHA-256, or as fast as the disk goes by the XXH3 that each import notes beside its objects (in the
database: 54 bytes an object, where a file beside each would cost a block). XXH3 is no defence
against anybody who wants to deceive, only against disks; so where it differs SHA-256 decides.

A damaged object leaves the store at once, into ROOT/quarantine: a mount then answers EIO for its
file where it would have given wrong bytes, and an import or a repair (`repair`) that has the content
puts a sound one in its place. The name is taken away by one rename, with imports kept out, which
would take an object that is there for a sound one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from layerstore import check, session
from layerstore.check import Problem
from layerstore.collect import blob_path
from layerstore.errors import ObjectCorrupt
from layerstore.objects import CHUNK_SIZE, Hashers, Objects
from layerstore.store import Store

Progress = Callable[[str, int, int | None], None]
_NOTED_AT_ONCE = 4096


def scrub(
    store: Store, *, fast: bool = False, progress: Progress | None = None
) -> Iterator[Problem]:
    """Check the structure as `check` does, then the content of every object that is there.

    Args:
        fast: by XXH3 where it is known.
        progress: told how far it is.

    Yields:
        what is wrong, with the images it hurts; a damaged object is in quarantine by then.
    """
    survey = check.survey(store)
    objects = store.objects()
    for problem in check.check(store, found=survey):
        # What is there, but of the wrong size, comes up once more when it is read.
        if problem.digest is None or not _is_there(store, objects, problem.digest):
            yield problem
    yield from (
        problem
        for problem in check.check_blobs(store, content=True)
        if problem.digest is not None and _is_there(store, objects, problem.digest)
    )
    known = store.refs().checksums()
    fresh: list[tuple[bytes, bytes]] = []
    done = 0
    for digest in objects:
        key = bytes.fromhex(digest[7:])
        try:
            size, sums = _read(objects, digest, known.get(key) if fast else None)
        except FileNotFoundError:  # removed meanwhile
            continue
        except (ObjectCorrupt, OSError) as error:
            need = survey.needs.get(key, check.Need())
            _quarantine(store, objects, digest)
            yield Problem(f"{error}; it is in quarantine", list(need.images), digest)
            continue
        if sums is not None and sums != known.get(key):
            fresh.append((key, sums))
            if len(fresh) >= _NOTED_AT_ONCE:
                _note(store, fresh)
        done += size
        if progress is not None:
            progress("reading objects", done, max(done, survey.content_bytes))
    _note(store, fresh)


def _is_there(store: Store, objects: Objects, digest: str) -> bool:
    return objects.has(digest) or os.path.exists(blob_path(store.root, digest))


def _read(objects: Objects, digest: str, checksum: bytes | None) -> tuple[int, bytes | None]:
    """The size of a sound object, and its XXH3 where SHA-256 was asked.

    Raises:
        ObjectCorrupt: it is not what its name says.
        OSError: it cannot be read.
    """
    import xxhash

    with open(objects.path(digest), "rb", buffering=0) as file:
        # What the page cache has is no proof of what the disk has.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if checksum is not None:
            quick = xxhash.xxh3_64()
            while chunk := file.read(CHUNK_SIZE):
                quick.update(chunk)
            if quick.digest() == checksum:
                return file.tell(), None
            file.seek(0)
        both = Hashers()
        while chunk := file.read(CHUNK_SIZE):
            both.update(chunk)
        if both.digest != digest:
            raise ObjectCorrupt(digest, both.digest)
        return file.tell(), both.checksum


def _quarantine(store: Store, objects: Objects, digest: str) -> None:
    with session.no_imports(store.root):
        try:
            _read(objects, digest, None)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EUCLEAN, errno.EBADMSG):
                raise
        except ObjectCorrupt:
            pass
        else:
            return  # an import has replaced it meanwhile
        objects.quarantine(digest)


def _note(store: Store, fresh: list[tuple[bytes, bytes]]) -> None:
    if fresh:
        with store.refs().transaction():
            store.refs().set_checksums(fresh)
        fresh.clear()
