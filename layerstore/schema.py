"""The tables of the database, version by version.

A new store goes through every step, an older one through those it lacks, all in one transaction: a
crash leaves the version that was there. A step is never changed once a store may have it.
"""

from __future__ import annotations

import sqlite3

_FIRST = """
CREATE TABLE layers (
    diff_id TEXT PRIMARY KEY,
    tar_size INTEGER NOT NULL,
    content_size INTEGER NOT NULL,
    entries INTEGER NOT NULL,
    index_digest TEXT NOT NULL
) STRICT;
CREATE TABLE chains (
    chain_id TEXT PRIMARY KEY,
    index_digest TEXT NOT NULL
) STRICT;
CREATE TABLE images (
    id TEXT PRIMARY KEY,
    chain_id TEXT NOT NULL REFERENCES chains,
    config BLOB NOT NULL,
    manifest BLOB NOT NULL,
    source TEXT NOT NULL,
    imported_ns INTEGER NOT NULL
) STRICT;
CREATE TABLE image_layers (
    image_id TEXT NOT NULL REFERENCES images ON DELETE CASCADE,
    position INTEGER NOT NULL,
    diff_id TEXT NOT NULL REFERENCES layers,
    PRIMARY KEY (image_id, position)
) STRICT;
CREATE INDEX image_layers_by_layer ON image_layers (diff_id);
CREATE TABLE tags (
    name TEXT PRIMARY KEY,
    image_id TEXT NOT NULL REFERENCES images ON DELETE CASCADE
) STRICT;
CREATE TABLE uppers (
    name TEXT PRIMARY KEY,
    image_id TEXT NOT NULL REFERENCES images,
    made_ns INTEGER NOT NULL
) STRICT;
"""

# No ON DELETE CASCADE: whatever forgets to look for leases cannot delete a leased image either.
_LEASES = """
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    image_id TEXT NOT NULL REFERENCES images,
    owner TEXT NOT NULL,
    made_ns INTEGER NOT NULL,
    expires_ns INTEGER,
    boot_id TEXT,
    mountpoint BLOB,
    upper TEXT
) STRICT;
CREATE INDEX leases_by_image ON leases (image_id);
"""

# Keyed by the digest's 32 bytes, without a row id: one tree of 54 bytes an object.
_CHECKSUMS = """
CREATE TABLE checksums (
    object BLOB PRIMARY KEY,
    xxh3 BLOB NOT NULL
) STRICT, WITHOUT ROWID;
"""

# An image's and not a layer's: the digests are those that its manifest lists.
_BLOBS = """
CREATE TABLE blobs (
    image_id TEXT NOT NULL REFERENCES images ON DELETE CASCADE,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (image_id, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX blobs_by_digest ON blobs (digest);
"""

STEPS = (_FIRST, _LEASES, _CHECKSUMS, _BLOBS)
VERSION = len(STEPS)


def upgrade(database: sqlite3.Connection, version: int) -> None:
    """Bring a database to `VERSION`. Inside a transaction.

    Args:
        version: what it has; 0: a new one.
    """
    for step in STEPS[version:]:
        for statement in step.split(";"):
            database.execute(statement)
    database.execute(f"PRAGMA user_version = {VERSION}")
