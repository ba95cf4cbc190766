"""Credentials: whose are found where, and that a wrong file is named."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from layerstore.errors import StoreError
from layerstore.registry.credentials import find_credentials, parse_credentials


def auth(user: str, secret: str = "secret") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}


def write(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def user(registry: str, repository: str, authfile: str | None = None) -> str | None:
    found = find_credentials(registry, repository, authfile)
    return found.user if found is not None else None


def test_given() -> None:
    found = parse_credentials("me:pa:ss")
    assert (found.user, found.secret) == ("me", "pa:ss")
    assert parse_credentials("me").secret == ""
    with pytest.raises(StoreError, match=r"USER\[:PASSWORD\]"):
        parse_credentials(":x")


def test_a_secret_is_not_shown() -> None:
    assert "hidden" not in repr(parse_credentials("me:hidden"))


def test_podman_before_docker(home: Path) -> None:
    assert user("quay.io", "a/b") is None
    write(home / ".docker/config.json", {"auths": {"quay.io": auth("docker")}})
    assert user("quay.io", "a/b") == "docker"
    write(home / ".config/containers/auth.json", {"auths": {"quay.io": auth("config")}})
    assert user("quay.io", "a/b") == "config"
    write(home / "run/containers/auth.json", {"auths": {"other.io": auth("other")}})
    assert user("quay.io", "a/b") == "config"
    write(home / "run/containers/auth.json", {"auths": {"quay.io": auth("run")}})
    assert user("quay.io", "a/b") == "run"


def test_a_named_file_is_the_only_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / "run/containers/auth.json", {"auths": {"quay.io": auth("run")}})
    named = write(home / "mine.json", {"auths": {"other.io": auth("mine")}})
    assert user("quay.io", "a", named) is None
    assert user("other.io", "a", named) == "mine"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", named)
    assert user("other.io", "a") == "mine"
    with pytest.raises(StoreError, match=r"missing\.json: there is no such file"):
        find_credentials("quay.io", "a", str(home / "missing.json"))


def test_the_longest_path_wins(home: Path) -> None:
    path = write(
        home / "auth.json",
        {
            "auths": {
                "host:5000": auth("host"),
                "host:5000/a": auth("a"),
                "host:5000/a/b/c": auth("abc"),
                "https://other.io/v1/": auth("other"),
                "empty.io/x": {},
                "empty.io": auth("empty"),
            }
        },
    )
    assert user("host:5000", "a/b/c", path) == "abc"
    assert user("host:5000", "a/b", path) == "a"
    assert user("host:5000", "ab", path) == "host"
    assert user("host", "a", path) is None
    assert user("other.io", "a", path) == "other"
    assert user("empty.io", "x", path) == "empty"


def test_docker_hub_has_several_names(home: Path) -> None:
    for key in (
        "https://index.docker.io/v1/",
        "docker.io",
        "index.docker.io",
        "registry-1.docker.io",
    ):
        path = write(home / "auth.json", {"auths": {key: auth("hub")}})
        assert user("docker.io", "library/debian", path) == "hub"


def test_identity_token(home: Path) -> None:
    path = write(home / "auth.json", {"auths": {"a.io": {"identitytoken": "t"}}})
    found = find_credentials("a.io", "x", path)
    assert found is not None
    assert found.is_identity_token
    assert found.secret == "t"


def helper(home: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Install a credential helper called `test`."""
    program = home / "bin/docker-credential-test"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_helper(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(
        home,
        monkeypatch,
        'read server; [ "$1" = get ] || exit 2\n'
        "case $server in a.io|https://index.docker.io/v1/) ;; *)\n"
        'echo "credentials not found in native keychain"; exit 1;; esac\n'
        'echo "{\\"ServerURL\\":\\"$server\\",\\"Username\\":\\"helped\\",\\"Secret\\":\\"s\\"}"',
    )
    auths = {"a.io": auth("plain"), "b.io": auth("plain")}
    path = write(home / "1.json", {"credHelpers": {"a.io": "test"}, "auths": auths})
    assert user("a.io", "x", path) == "helped"
    assert user("b.io", "x", path) == "plain"
    path = write(home / "2.json", {"credsStore": "test", "auths": auths})
    assert user("a.io", "x", path) == "helped"
    assert user("b.io", "x", path) == "plain"  # the store does not know it
    assert user("docker.io", "library/debian", path) == "helped"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo broken >&2; exit 1", "failed for a.io: broken"),
        ("echo '{\"Username\": 1}'", "is not JSON with Username and Secret"),
        ("echo '[]'", "is not JSON with Username and Secret"),
        ("echo nonsense", "is not JSON with Username and Secret"),
    ],
)
def test_helper_that_fails(
    home: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    helper(home, monkeypatch, script)
    path = write(home / "auth.json", {"credHelpers": {"a.io": "test"}})
    with pytest.raises(StoreError, match=said):
        find_credentials("a.io", "x", path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ({"auths": []}, "auths is not a JSON object"),
        ({"credHelpers": 1}, "credHelpers is not a JSON object"),
        ({"auths": {"a.io": {"auth": "%%%"}}}, "not USER:PASSWORD in base64"),
        ({"auths": {"a.io": {"auth": "bm9jb2xvbg=="}}}, "not USER:PASSWORD in base64"),
        ({"credHelpers": {"a.io": "nowhere-to-be-found"}}, "is not installed"),
        ({"credHelpers": {"a.io": "../../bin/sh"}}, "names no credential helper"),
        ({"credsStore": ["x"]}, "names no credential helper"),
    ],
)
def test_a_wrong_file_is_named(home: Path, content: Any, said: str) -> None:
    path = write(home / "auth.json", content)
    with pytest.raises(StoreError, match=said) as error:
        find_credentials("a.io", "x", path)
    assert "auth.json" in str(error.value)
    assert "\n" not in str(error.value)
