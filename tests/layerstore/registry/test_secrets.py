"""Credentials, where a registry would have them go elsewhere or answers nonsense."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from layerstore.registry.access import Access
from layerstore.registry.credentials import parse_credentials
from tests.layerstore.archives import layout_of
from tests.layerstore.registry.refusal import at, refused
from tests.layerstore.registry.served import Handler, Request, Rule, Served, serving
from tests.layerstore.stores import BASE


def with_credentials(access: Access) -> Access:
    return dataclasses.replace(access, credentials=parse_credentials("me:secret"))


def challenge(value: str) -> Rule:
    """A rule: always asks for authentication so."""

    def rule(handler: Handler, request: Request) -> bool:
        if "/v2/" not in request.path:
            return False
        handler.reply(401, b"{}", {"WWW-Authenticate": value})
        return True

    return rule


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_credentials_do_not_follow_a_redirect(
    served: Served, hasty: Access, root: Path, status: int
) -> None:
    with serving() as thief:
        thief.rules.append(challenge('Basic realm="give it to me"'))
        location = f"http://{thief.name}/v2/x"

        def rule(handler: Handler, request: Request) -> bool:
            if "authorization" not in request.headers:
                handler.reply(401, b"{}", {"WWW-Authenticate": "Basic realm=x"})
            else:
                handler.reply(status, b"", {"Location": location})
            return True

        served.rules.append(rule)
        refused(root, served, with_credentials(hasty), "access is denied")
        assert served.sent("authorization")
        assert thief.requests
        assert thief.sent("authorization") == []


def test_a_token_does_not_follow_a_redirect(served: Served, hasty: Access, root: Path) -> None:
    with serving() as thief:
        served.add(layout_of([BASE]), "1")

        def rule(handler: Handler, request: Request) -> bool:
            if request.path.startswith("/token"):
                handler.reply(200, b'{"token": "secret-token"}')
            elif "authorization" not in request.headers:
                realm = f'Bearer realm="http://{served.name}/token"'
                handler.reply(401, b"", {"WWW-Authenticate": realm})
            elif "/blobs/" in request.path:
                handler.reply(307, b"", {"Location": f"http://{thief.name}{request.path}"})
            else:
                return False
            return True

        served.rules.append(rule)
        refused(root, served, with_credentials(hasty), "is missing")
        assert "Bearer secret-token" in served.sent("authorization")
        assert thief.sent("authorization") == []


def test_a_token_endpoint_that_redirects(served: Served, hasty: Access, root: Path) -> None:
    with serving() as thief:
        served.rules.append(challenge(f'Bearer realm="http://{served.name}/token"'))
        headers = {"Location": f"http://{thief.name}/"}
        served.rules.insert(0, at("/token", lambda handler: handler.reply(302, b"", headers)))
        refused(root, served, with_credentials(hasty), "answers with status 302")
        assert thief.requests == []


@pytest.mark.parametrize(
    ("realm", "said"),
    [
        ("http://192.0.2.1/token", "without TLS, which is only followed on this machine"),
        ("http://localhost.example/token", "without TLS, which is only followed"),
        ("ftp://127.0.0.1/token", "which is no place"),
        ("file:///etc/passwd", "which is no place"),
        ("http://[bad/", "without TLS"),
        ("", "says not from where"),
    ],
)
def test_a_token_endpoint_that_is_none(
    served: Served, hasty: Access, root: Path, realm: str, said: str
) -> None:
    served.rules.append(challenge(f'Bearer realm="{realm}"'))
    refused(root, served, with_credentials(hasty), said)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"token": 5}',
        b'{"token": ""}',
        b'{"token": "a\\r\\nX-Evil: 1"}',
        b'{"token": "\\u00e9"}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_token_that_is_garbage(served: Served, hasty: Access, root: Path, answer: bytes) -> None:
    served.rules.append(challenge(f'Bearer realm="http://{served.name}/token"'))
    served.rules.insert(0, at("/token", lambda handler: handler.reply(200, answer)))
    refused(root, served, hasty, "answers with no token")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "wants authentication by nothing"),
        ("Negotiate abc=", "wants authentication by negotiate"),
        ("\x7f@@", "wants authentication by nothing"),
        ("Basic", "does not take the credentials of me"),
    ],
)
def test_challenges_that_nobody_answers(
    served: Served, hasty: Access, root: Path, value: str, said: str
) -> None:
    served.rules.append(challenge(value))
    text = refused(root, served, with_credentials(hasty), said)
    assert "secret" not in text


def test_a_token_that_is_never_good_enough(served: Served, hasty: Access, root: Path) -> None:
    served.rules.append(challenge(f'Bearer realm="http://{served.name}/token"'))
    served.rules.insert(0, at("/token", lambda handler: handler.reply(200, b'{"token": "t"}')))
    refused(root, served, with_credentials(hasty), "does not take the credentials of me")


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("http://192.0.2.1/x", "without TLS, which is only followed on this machine"),
        ("ftp://127.0.0.1/", "which is no place"),
        ("//", "redirects more than 10 times"),
        ("http://127.0.0.1:bad/", "Invalid URL in location header"),
    ],
)
def test_redirects_to_nowhere(
    served: Served, hasty: Access, root: Path, location: str, said: str
) -> None:
    served.rules.append(
        at("/manifests/", lambda handler: handler.reply(302, b"", {"Location": location}))
    )
    refused(root, served, hasty, said)


def test_redirects_in_a_circle(served: Served, hasty: Access, root: Path) -> None:
    served.rules.append(at("/", lambda handler: handler.reply(302, b"", {"Location": "/v2/a/x"})))
    refused(root, served, hasty, "redirects more than 10 times")


def test_insecure_is_for_this_machine(hasty: Access, root: Path) -> None:
    text = refused(root, Served("registry.example"), hasty, "is not on this machine")
    assert "--cert-dir" in text


def test_plain_http_needs_to_be_allowed(served: Served, impatient: Access, root: Path) -> None:
    served.add(layout_of([BASE]), "1")
    access = dataclasses.replace(with_credentials(impatient), insecure=False)
    refused(root, served, access, "")
    assert served.requests == []


def test_an_error_message_of_the_registry_is_shown_tamed(
    served: Served, hasty: Access, root: Path
) -> None:
    said = {"errors": [{"code": "DENIED", "message": "no\n\x1b[31mway" + "x" * 1000}]}
    data = json.dumps(said).encode()
    served.rules.append(at("/manifests/", lambda handler: handler.reply(403, data)))
    text = refused(root, served, hasty, "access is denied: no\\n\\x1b[31mway")
    assert text.isprintable()
