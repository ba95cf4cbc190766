"""Where an image goes, spelled like an import source (see `layerstore.oci.sources`).

    oci-archive:PATH[:TAG]   oci:DIR[:TAG]   docker-archive:PATH[:NAME:TAG]   tar:PATH   dir:PATH

PATH may be `-`, standard output, where the form is a stream: all but oci: and dir:.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import NamedTuple

from layerstore import names
from layerstore.errors import StoreError, show
from layerstore.oci.sources import SCHEMES

STDOUT = b"-"
_DIRECTORIES = ("oci", "dir")
# OCI image spec, annotations.md: org.opencontainers.image.ref.name.
_REF_NAME = re.compile(r"[A-Za-z0-9]+(?:(?:[-._:@/+]|--)[A-Za-z0-9]+)*")
_ELSEWHERE = {
    "docker": "docker://[HOST[:PORT]/]REPOSITORY[:TAG] names an image in a registry",
    "docker-daemon": "export to docker-archive:PATH, then docker load -i PATH",
    "containers-storage": "export to oci-archive:PATH, then podman load -i PATH",
}


class Destination(NamedTuple):
    """`reference`: TAG or NAME:TAG, None if there is none."""

    scheme: str
    path: bytes
    reference: str | None

    @property
    def is_stream(self) -> bool:
        """Whether it is standard output."""
        return self.path == STDOUT


def parse_destination(text: str) -> Destination:
    """Take a destination apart.

    Raises:
        StoreError: it is none.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _ELSEWHERE:
        raise StoreError(f"{show(text)}: {scheme}: is not written directly; {_ELSEWHERE[scheme]}")
    if not colon or scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, 1) if colon else []
        hint = f"did you mean {near[0]}:?" if near else "put one before it"
        raise StoreError(
            f"{show(text)}: destinations are {', '.join(name + ':PATH' for name in SCHEMES)}; {hint}"
        )
    if scheme in ("tar", "dir"):
        found = Destination(scheme, os.fsencode(rest), None)
    else:
        # As skopeo does: the first colon ends the path.
        path, colon, reference = rest.partition(":")
        found = Destination(scheme, os.fsencode(path), _reference(scheme, reference, text))
    if not found.path:
        raise StoreError(f"{show(text)}: a path is missing after {scheme}:")
    if found.is_stream and scheme in _DIRECTORIES:
        raise StoreError(f"{show(text)}: {scheme}: is a directory, not a stream: name a path")
    return found


def _reference(scheme: str, reference: str, text: str) -> str | None:
    if not reference:
        return None
    if scheme == "docker-archive":
        return names.full_name(reference)
    if _REF_NAME.fullmatch(reference) is None:
        raise StoreError(
            f"{show(text)}: {show(reference)!r} is no tag of an OCI layout: letters and digits, with"
            " one of - . _ : @ / + between"
        )
    return reference
