"""WWW-Authenticate, as registries write it and as they should not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.registry.challenges import Challenge, parse_challenges


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ('Basic realm="x"', [Challenge("basic", {"realm": "x"})]),
        ("Basic", [Challenge("basic")]),
        (
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
            'scope="repository:library/debian:pull"',
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:library/debian:pull",
                    },
                )
            ],
        ),
        (
            'Bearer realm="a, b", scope="pull,push" , Basic realm=plain',
            [
                Challenge("bearer", {"realm": "a, b", "scope": "pull,push"}),
                Challenge("basic", {"realm": "plain"}),
            ],
        ),
        (
            'Negotiate, Basic realm="x"',
            [Challenge("negotiate"), Challenge("basic", {"realm": "x"})],
        ),
        (
            'Negotiate YWJj==, Basic realm="x"',
            [Challenge("negotiate"), Challenge("basic", {"realm": "x"})],
        ),
        (r'Basic realm="a \"b\" \\ c"', [Challenge("basic", {"realm": r'a "b" \ c'})]),
        ('BASIC REALM = "x"', [Challenge("basic", {"realm": "x"})]),
        ('Bearer realm="a",realm="b"', [Challenge("bearer", {"realm": "a"})]),
        ('Bearer realm="never closed', [Challenge("bearer")]),
        ("", []),
        (",,,", []),
        ("realm=x", []),
        ("@@@ garbage", []),
    ],
)
def test_what_a_header_asks_for(value: str, meant: list[Challenge]) -> None:
    assert parse_challenges([value]) == meant


def test_several_headers() -> None:
    found = parse_challenges(["Basic realm=a", "Bearer realm=b"])
    assert [challenge.scheme for challenge in found] == ["basic", "bearer"]


token = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}", fullmatch=True)
text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
challenges = st.lists(
    st.tuples(token, st.dictionaries(token.map(str.lower), text, min_size=1, max_size=4)),
    max_size=4,
)


@given(challenges)
def test_what_is_written_is_read(written: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    value = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(it)}" for name, it in parameters.items())
        for scheme, parameters in written
    )
    meant = [Challenge(scheme.lower(), parameters) for scheme, parameters in written]
    assert parse_challenges([value]) == meant


@given(st.text(max_size=200))
def test_any_header_can_be_read(value: str) -> None:
    for challenge in parse_challenges([value, value]):
        assert challenge.scheme == challenge.scheme.lower()
