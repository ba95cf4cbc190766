"""registries.conf: where an image is really looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerstore.errors import StoreError
from layerstore.registry.configuration import locations, read_configuration
from layerstore.registry.references import parse_reference

DIGEST = "sha256:" + "0" * 64


def places(home: Path, text: str, reference: str, *mirrors: str) -> list[str]:
    """The places for a reference with this configuration; `!` after those without TLS."""
    (home / "registries.conf").write_text(text)
    found = locations(parse_reference(reference), read_configuration(), mirrors)
    return [f"{it.registry}/{it.repository}{'!' if it.insecure else ''}" for it in found]


MIRRORED = """
unqualified-search-registries = ["docker.io"]
[[registry]]
prefix = "example.com/foo"
location = "internal.example.net/bar"
[[registry.mirror]]
location = "mirror-0.local/mirror-for-foo"
[[registry.mirror]]
location = "localhost:5000/foo"
insecure = true
[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "hub.local"
"""


def test_the_example_of_the_manual(home: Path) -> None:
    assert places(home, MIRRORED, "example.com/foo/image:latest") == [
        "mirror-0.local/mirror-for-foo/image",
        "localhost:5000/foo/image!",
        "internal.example.net/bar/image",
    ]
    assert places(home, MIRRORED, "example.com/foobar") == ["example.com/foobar"]
    assert places(home, MIRRORED, "example.com:80/foo/a") == ["example.com:80/foo/a"]
    assert places(home, MIRRORED, "example.com/foo") == [
        "mirror-0.local/mirror-for-foo",
        "localhost:5000/foo!",
        "internal.example.net/bar",
    ]


def test_docker_hub(home: Path) -> None:
    assert places(home, MIRRORED, "debian") == [
        "hub.local/library/debian",
        "docker.io/library/debian",
    ]


def test_mirrors_that_are_given_come_first(home: Path) -> None:
    assert places(home, MIRRORED, "debian", "one:80", "two.local/x/") == [
        "one:80/library/debian",
        "two.local/x/library/debian",
        "hub.local/library/debian",
        "docker.io/library/debian",
    ]
    assert places(home, "", "debian", "shorthost") == [
        "shorthost/library/debian",
        "docker.io/library/debian",
    ]


def test_the_longest_prefix_and_wildcards(home: Path) -> None:
    text = """
    [[registry]]
    prefix = "*.example.com"
    [[registry.mirror]]
    location = "any.local"
    [[registry]]
    prefix = "a.example.com/very/long/path"
    location = "long.local"
    """
    assert places(home, text, "a.example.com/x") == ["any.local/x", "a.example.com/x"]
    assert places(home, text, "a.example.com/very/long/path/x") == ["long.local/x"]
    assert places(home, text, "example.com/x") == ["example.com/x"]


@pytest.mark.parametrize("how", ["pull-from-mirror", "mirror-by-digest-only"])
def test_mirrors_for_digests_only(home: Path, how: str) -> None:
    inner = 'pull-from-mirror = "digest-only"' if how == "pull-from-mirror" else ""
    outer = "mirror-by-digest-only = true" if how != "pull-from-mirror" else ""
    text = f"""
    [[registry]]
    location = "a.io"
    {outer}
    [[registry.mirror]]
    location = "m.io"
    {inner}
    """
    assert places(home, text, "a.io/x:1") == ["a.io/x"]
    assert places(home, text, f"a.io/x@{DIGEST}") == ["m.io/x", "a.io/x"]


def test_later_files_replace(home: Path) -> None:
    directory = home / ".config/containers/registries.conf.d"
    directory.mkdir(parents=True)
    (directory / "1.conf").write_text('[[registry]]\nlocation="b.io"\nprefix="a.io"\n')
    (directory / "2.conf").write_text('[[registry]]\nlocation="c.io"\nprefix="a.io"\n')
    (directory / "3.txt").write_text("not read")
    assert places(home, "", "a.io/x") == ["c.io/x"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[", "is not valid TOML"),
        ("registry = 1", "is not a list of tables"),
        ("[[registry]]\nprefix = 1", "prefix is not a string"),
        ("[[registry]]\ninsecure = true", "neither prefix nor location"),
        ('[[registry]]\nprefix = "a.io"\nmirror = ["x"]', "mirror is not a list of tables"),
        ('[[registry]]\nprefix = "a.io"\n[[registry.mirror]]\ninsecure = true', "has no location"),
        ('[[registry]]\nprefix = "a.io"\nblocked = true', "forbids to pull from a.io"),
        ('[[registry]]\nprefix = "a.io"\nlocation = "../x"', "is no place for an image"),
    ],
)
def test_wrong_configuration(home: Path, text: str, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        places(home, text, "a.io/x")


@pytest.mark.parametrize("mirror", ["", "http://a.io", "a b", "a.io/Upper", "a.io:99999"])
def test_what_is_no_mirror(home: Path, mirror: str) -> None:
    with pytest.raises(StoreError, match="is no place for an image"):
        places(home, "", "a.io/x", mirror)
