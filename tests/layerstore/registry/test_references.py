"""References: what skopeo and podman make of the same words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.errors import StoreError
from layerstore.registry.references import Reference, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("debian", Reference("docker.io", "library/debian", "latest")),
        ("debian:12", Reference("docker.io", "library/debian", "12")),
        ("docker.io/debian", Reference("docker.io", "library/debian", "latest")),
        ("index.docker.io/debian", Reference("docker.io", "library/debian", "latest")),
        ("user/app", Reference("docker.io", "user/app", "latest")),
        ("docker://quay.io/a/b/c:v1", Reference("quay.io", "a/b/c", "v1")),
        ("localhost/app", Reference("localhost", "app", "latest")),
        ("localhost:5000/app", Reference("localhost:5000", "app", "latest")),
        ("host:5000/app:1.2-3_4", Reference("host:5000", "app", "1.2-3_4")),
        ("[::1]:5000/app", Reference("[::1]:5000", "app", "latest")),
        ("Host/app", Reference("Host", "app", "latest")),
        (f"debian@{DIGEST}", Reference("docker.io", "library/debian", None, DIGEST)),
        (f"quay.io/a:t@{DIGEST}", Reference("quay.io", "a", "t", DIGEST)),
        ("a__b/c-d--e/f.g", Reference("docker.io", "a__b/c-d--e/f.g", "latest")),
    ],
)
def test_what_a_reference_means(text: str, meant: Reference) -> None:
    assert parse_reference(text) == meant
    assert parse_reference(str(meant)) == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no repository"),
        ("docker://", "names no repository"),
        ("Debian", "it has capital letters"),
        ("quay.io/Debian", "it has capital letters"),
        ("debian:", "is no tag"),
        ("debian:-1", "is no tag"),
        ("debian:" + "t" * 129, "is no tag"),
        ("debian@sha256:12", "64 hexadecimal digits"),
        ("debian@", "64 hexadecimal digits"),
        ("debian@sha512:" + "0" * 128, "not SHA-256"),
        ("host:0/app", "no registry"),
        ("host:65536/app", "no registry"),
        ("-host.org/app", "no registry"),
        ("user:pass@host/app", "after the @"),
        ("a..b/c", "no registry"),
        ("quay.io//a", "names no repository"),
        ("quay.io/a/", "names no repository"),
        ("quay.io/../a", "names no repository"),
        ("quay.io/a\nb", "names no repository"),
        ("quay.io/" + "a/" * 128 + "b", "names no repository"),
        ("quay.io/é", "names no repository"),
    ],
)
def test_what_is_no_reference(text: str, said: str) -> None:
    with pytest.raises(StoreError) as error:
        parse_reference(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


hosts = st.from_regex(
    r"(localhost|[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?(\.[a-z]{1,4}){1,3})(:[1-9][0-9]{0,3})?",
    fullmatch=True,
)
repositories = st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+)?(/[a-z0-9]+){1,3}", fullmatch=True)
tags = st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@given(hosts, repositories, tags, st.booleans())
def test_a_whole_reference_is_read_as_it_is_written(
    host: str, repository: str, tag: str | None, by_digest: bool
) -> None:
    digest = DIGEST if by_digest else None
    meant = Reference(host, repository, tag or (None if by_digest else "latest"), digest)
    assert parse_reference(str(meant)) == meant
    assert parse_reference("docker://" + str(meant)) == meant


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_an_error(text: str) -> None:
    try:
        parsed = parse_reference(text)
    except StoreError as error:
        said = str(error)
        parsed = None
    if parsed is None:
        assert said.isprintable()
        return
    assert parse_reference(str(parsed)) == parsed
    # Nothing that would mean something else in a URL.
    assert not set(parsed.repository) & set("?#%\\ :@")
    assert ".." not in parsed.repository
