"""Platforms: which image of an index runs where."""

from __future__ import annotations

from typing import Any

import pytest

from layerstore.errors import StoreError
from layerstore.registry.platforms import Platform, choose, host_platform, parse_platform


def index(*names: str) -> list[dict[str, Any]]:
    """Descriptors for platforms, each with its name."""
    found = []
    for name in names:
        system, architecture, *variant = name.split("/")
        platform = {"os": system, "architecture": architecture}
        if variant:
            platform["variant"] = variant[0]
        found.append({"platform": platform, "name": name})
    return found


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], "linux/amd64"),
        ("linux/x86_64", ["linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64"], "linux/amd64"),
        ("linux/arm64", ["linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm64/v8", ["linux/arm64"], "linux/arm64"),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], "linux/arm/v6"),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], "linux/arm/v5"),
        ("linux/arm", ["linux/arm/v5", "linux/arm/v7"], "linux/arm/v7"),
        ("Linux/AMD64", ["linux/amd64"], "linux/amd64"),
    ],
)
def test_the_best_is_chosen(wanted: str, offered: list[str], chosen: str) -> None:
    assert choose(parse_platform(wanted), index(*offered), "x")["name"] == chosen


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("linux/amd64", ["linux/arm64"]),
        ("linux/amd64", ["windows/amd64"]),
        ("linux/arm/v5", ["linux/arm/v7"]),
        ("linux/amd64", ["unknown/unknown"]),
        ("linux/amd64", []),
    ],
)
def test_none_is_said_with_what_there_is(wanted: str, offered: list[str]) -> None:
    with pytest.raises(StoreError, match=f"x: no image for {wanted}; it has ") as error:
        choose(parse_platform(wanted), index(*offered), "x")
    assert "unknown" not in str(error.value)


def test_descriptors_of_anything_else_are_passed_over() -> None:
    odd: list[dict[str, Any]] = [
        {},
        {"platform": None},
        {"platform": {"os": 1, "architecture": []}},
        {"platform": {"os": "linux"}},
    ]
    good = index("linux/amd64")
    assert choose(Platform("linux", "amd64"), odd + good, "x") == good[0]


@pytest.mark.parametrize("text", ["", "linux", "linux/", "a/b/c/d", "linux/amd 64", "linux/é"])
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(StoreError, match="OS/ARCH"):
        parse_platform(text)


def test_this_machine_has_one() -> None:
    assert host_platform().os == "linux"
    assert parse_platform(str(host_platform())) == host_platform()
