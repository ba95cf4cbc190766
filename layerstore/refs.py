"""What the store knows by name: tags, images, layers, named uppers and leases, in SQLite (WAL).

A row is written only after everything it speaks of is on the disk, and all rows of an image in one
transaction: a reader sees an image whole or not at all. One thread per `Refs`; any number of
processes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from layerstore import schema
from layerstore.errors import ImageInUse, NoRoom, StoreError, show
from layerstore.room import is_full

_BUSY_SECONDS = 60


class LayerRow(NamedTuple):
    """A layer. Sizes in bytes: of its plain tar, of the files in it; `index_digest` of its index
    file."""

    diff_id: str
    tar_size: int
    content_size: int
    entries: int
    index_digest: str


class ImageRow(NamedTuple):
    """An image. `imported_ns` in nanoseconds since 1970."""

    id: str
    chain_id: str
    config: bytes
    manifest: bytes
    source: str
    imported_ns: int


class BlobRow(NamedTuple):
    """A layer's blob that is kept as it came, for an image whose manifest lists it. `size` in
    bytes."""

    image_id: str
    digest: str
    size: int


class LeaseRow(NamedTuple):
    """A lease; see `layerstore.leases`. `boot_id`, `mountpoint` and `upper`: of a mount of the
    kernel's."""

    name: str
    image_id: str
    owner: str
    made_ns: int
    expires_ns: int | None
    boot_id: str | None
    mountpoint: bytes | None
    upper: str | None


class Refs:
    """The names of a store.

    Args:
        path: the database.
        create: make it if there is none.

    Raises:
        StoreError: it is no database of ours, or of a newer version.
    """

    def __init__(self, path: bytes, *, create: bool = False) -> None:
        self._path = path
        self._root = os.path.dirname(path)
        mode = "rwc" if create else "rw"
        try:
            self._db = sqlite3.connect(
                f"file:{urllib.parse.quote(path)}?mode={mode}",
                uri=True,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise StoreError(f"{show(path)}: {error}") from None
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            # A commit is what makes an image visible: it must survive a power cut.
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            version = self._version()
            if version < schema.VERSION:
                with self.transaction():
                    # Another process may have been faster.
                    version = self._version()
                    if version < schema.VERSION:
                        schema.upgrade(self._db, version)
                        version = schema.VERSION
        except sqlite3.DatabaseError as error:
            # What SQLite says of a full disk here is "disk I/O error".
            if is_full(self._root):
                raise NoRoom(self._root, "its database cannot be opened") from None
            raise StoreError(f"{show(self._path)}: {error}") from None
        if version != schema.VERSION:
            raise StoreError(
                f"{show(self._path)}: the store has version {version}, this program knows"
                f" {schema.VERSION}: use a newer one"
            )

    def _version(self) -> int:
        version: int = self._db.execute("PRAGMA user_version").fetchone()[0]
        return version

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything in the block happens, or nothing of it.

        Raises:
            NoRoom: the disk is full.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            # A full disk has SQLite roll back by itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError) and is_full(self._root):
                raise NoRoom(self._root, "nothing was changed") from None
            raise

    def problems(self) -> list[str]:
        """What SQLite finds wrong with the database; empty if nothing."""
        try:
            found = [row[0] for row in self._db.execute("PRAGMA integrity_check(5)")]
            stray = self._db.execute("PRAGMA foreign_key_check").fetchall()
        except sqlite3.DatabaseError as error:
            return [str(error)]
        lines = [line for line in found if line != "ok"]
        return lines + [f"a row of {row[0]} names no row of {row[2]}" for row in stray]

    # --- layers and chains

    def layer(self, diff_id: str) -> LayerRow | None:
        """A layer by its diff id."""
        row = self._db.execute("SELECT * FROM layers WHERE diff_id = ?", (diff_id,)).fetchone()
        return LayerRow(*row) if row else None

    def layers(self) -> list[LayerRow]:
        """All layers."""
        return [LayerRow(*row) for row in self._db.execute("SELECT * FROM layers ORDER BY 1")]

    def chains(self) -> dict[str, str]:
        """The digests of the image indexes by chain id."""
        return dict(self._db.execute("SELECT chain_id, index_digest FROM chains").fetchall())

    def has_chain(self, chain_id: str) -> bool:
        """Whether the index of these layers merged is in the store."""
        query = "SELECT 1 FROM chains WHERE chain_id = ?"
        return self._db.execute(query, (chain_id,)).fetchone() is not None

    def image_layers(self, image_id: str) -> list[LayerRow]:
        """The layers of an image, bottom first."""
        query = (
            "SELECT layers.* FROM image_layers JOIN layers USING (diff_id)"
            " WHERE image_id = ? ORDER BY position"
        )
        return [LayerRow(*row) for row in self._db.execute(query, (image_id,))]

    def add_layer(self, layer: LayerRow) -> None:
        """Add a layer, unless another process was faster. Inside a transaction."""
        self._db.execute("INSERT OR IGNORE INTO layers VALUES (?, ?, ?, ?, ?)", layer)

    def set_layer_index(self, diff_id: str, index_digest: str) -> None:
        """The index of a layer was made anew. Inside a transaction."""
        query = "UPDATE layers SET index_digest = ? WHERE diff_id = ?"
        self._db.execute(query, (index_digest, diff_id))

    def set_chain_index(self, chain_id: str, index_digest: str) -> None:
        """The index of an image was made anew. Inside a transaction."""
        query = "UPDATE chains SET index_digest = ? WHERE chain_id = ?"
        self._db.execute(query, (index_digest, chain_id))

    def add_chain(self, chain_id: str, index_digest: str) -> None:
        """Add an image index, unless another process was faster. Inside a transaction."""
        self._db.execute("INSERT OR IGNORE INTO chains VALUES (?, ?)", (chain_id, index_digest))

    # --- images and tags

    def images(self) -> list[ImageRow]:
        """All images, the newest first."""
        query = "SELECT * FROM images ORDER BY imported_ns DESC, id"
        return [ImageRow(*row) for row in self._db.execute(query)]

    def images_by_prefix(self, digits: str) -> list[ImageRow]:
        """The images whose id starts with these hexadecimal digits."""
        query = "SELECT * FROM images WHERE substr(id, 8, ?) = ? ORDER BY id"
        return [ImageRow(*row) for row in self._db.execute(query, (len(digits), digits))]

    def tags(self) -> dict[str, str]:
        """All tags in order, and the image each is of."""
        return dict(self._db.execute("SELECT name, image_id FROM tags ORDER BY name").fetchall())

    def add_image(self, image: ImageRow, diff_ids: list[str]) -> None:
        """Add an image. If it is there already, it takes the manifest where it had none. Inside a
        transaction."""
        update = "UPDATE images SET manifest = ? WHERE id = ? AND manifest = x''"
        self._db.execute(update, (image.manifest, image.id))
        known = self._db.execute("SELECT 1 FROM images WHERE id = ?", (image.id,)).fetchone()
        if known:
            return
        self._db.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)", image)
        self._db.executemany(
            "INSERT INTO image_layers VALUES (?, ?, ?)",
            [(image.id, position, diff_id) for position, diff_id in enumerate(diff_ids)],
        )

    def set_manifest(self, image_id: str, manifest: bytes) -> None:
        """Give an image another manifest. Inside a transaction."""
        self._db.execute("UPDATE images SET manifest = ? WHERE id = ?", (manifest, image_id))

    def blobs(self) -> list[BlobRow]:
        """The blobs that were kept, by digest."""
        query = "SELECT image_id, digest, size FROM blobs ORDER BY digest, image_id"
        return [BlobRow(*row) for row in self._db.execute(query)]

    def set_blobs(self, image_id: str, blobs: dict[str, int]) -> None:
        """Say which blobs are kept for an image, and their sizes. Inside a transaction."""
        self._db.execute("DELETE FROM blobs WHERE image_id = ?", (image_id,))
        self._db.executemany(
            "INSERT INTO blobs VALUES (?, ?, ?)",
            [(image_id, digest, size) for digest, size in blobs.items()],
        )

    def set_tag(self, name: str, image_id: str) -> None:
        """Give a tag to an image, taking it from any other. Inside a transaction."""
        self._db.execute("INSERT OR REPLACE INTO tags VALUES (?, ?)", (name, image_id))

    def remove_tag(self, name: str) -> None:
        """Forget a tag. Inside a transaction."""
        self._db.execute("DELETE FROM tags WHERE name = ?", (name,))

    def remove_image(self, image_id: str) -> None:
        """Forget an image and its tags, and the layers no other image has. Inside a transaction.

        Raises:
            ImageInUse: a named upper needs it.
        """
        query = "SELECT name FROM uppers WHERE image_id = ? ORDER BY name"
        uppers = [name for (name,) in self._db.execute(query, (image_id,))]
        if uppers:
            raise ImageInUse(
                f"image {short_id(image_id)} is the base of the named upper {', '.join(uppers)}:"
                " remove that first (layerstore rm --upper NAME)"
            )
        self._db.execute("DELETE FROM images WHERE id = ?", (image_id,))
        self._db.execute(
            "DELETE FROM layers WHERE diff_id NOT IN (SELECT diff_id FROM image_layers)"
        )
        self._db.execute("DELETE FROM chains WHERE chain_id NOT IN (SELECT chain_id FROM images)")

    # --- named uppers

    def uppers(self) -> dict[str, str]:
        """All named uppers, and the image each is on."""
        return dict(self._db.execute("SELECT name, image_id FROM uppers ORDER BY name").fetchall())

    def add_upper(self, name: str, image_id: str) -> None:
        """Add a named upper. Inside a transaction."""
        self._db.execute("INSERT INTO uppers VALUES (?, ?, ?)", (name, image_id, time.time_ns()))

    def remove_upper(self, name: str) -> None:
        """Forget a named upper. Inside a transaction."""
        self._db.execute("DELETE FROM uppers WHERE name = ?", (name,))

    # --- checksums

    def checksums(self) -> dict[bytes, bytes]:
        """XXH3 (64 bits) of the objects that have one, by the 32 bytes of the digest."""
        return dict(self._db.execute("SELECT object, xxh3 FROM checksums").fetchall())

    def checksum_keys(self) -> Iterator[bytes]:
        """The 32 bytes of the digest of each object that has one, in order."""
        for (key,) in self._db.execute("SELECT object FROM checksums ORDER BY object"):
            yield key

    def set_checksums(self, checksums: Iterable[tuple[bytes, bytes]]) -> None:
        """Note XXH3 sums of objects, by the 32 bytes of the digest. Inside a transaction.

        Args:
            checksums: best in order, as the tree then grows at few places.
        """
        self._db.executemany("INSERT OR REPLACE INTO checksums VALUES (?, ?)", checksums)

    def remove_checksums(self, keys: list[bytes]) -> None:
        """Forget those of objects that are gone. Inside a transaction."""
        self._db.executemany("DELETE FROM checksums WHERE object = ?", [(key,) for key in keys])

    # --- leases

    def leases(self) -> list[LeaseRow]:
        """All leases, ended ones too, the oldest first."""
        query = "SELECT * FROM leases ORDER BY made_ns, name"
        return [LeaseRow(*row) for row in self._db.execute(query)]

    def add_lease(self, lease: LeaseRow) -> None:
        """Add a lease. Inside a transaction.

        Raises:
            sqlite3.IntegrityError: its name is taken, or the image is not there.
        """
        self._db.execute("INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, ?)", lease)

    def remove_lease(self, name: str) -> None:
        """Forget a lease. Inside a transaction."""
        self._db.execute("DELETE FROM leases WHERE name = ?", (name,))


def short_id(image_id: str) -> str:
    """The first twelve digits, as podman and docker show an image id."""
    return image_id[7:19]
