"""Debian's docker-registry on a loopback port: plain, with basic authentication, with TLS."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

USER, PASSWORD = "tester", "pass:word"
_HTPASSWD = "tester:$2y$05$1z47fAQ6E4xAnes0XiDNa.wKgYk9K.Sf3x7ewq/UmMuW8Q5jHvT42\n"

needs_registry = pytest.mark.skipif(
    shutil.which("docker-registry") is None or shutil.which("skopeo") is None,
    reason="docker-registry and skopeo (Debian packages) are not installed",
)


@dataclass
class DockerRegistry:
    """A registry that runs. `name`: HOST:PORT. `authority`: the directory with its certificate's."""

    name: str
    content: Path
    authority: Path | None = None


@contextlib.contextmanager
def docker_registry(
    directory: Path, *, authentication: bool = False, tls: bool = False
) -> Iterator[DockerRegistry]:
    """A registry, while the context lasts.

    Args:
        directory: for everything it writes.
        authentication: ask for `USER` and `PASSWORD`.
        tls: speak TLS, with a certificate of an authority that nobody else knows.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    content = directory / "content"
    http: dict[str, object] = {"addr": f"127.0.0.1:{port}"}
    configuration = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(content)}},
        "http": http,
    }
    if authentication:
        (directory / "htpasswd").write_text(_HTPASSWD)
        configuration["auth"] = {"htpasswd": {"realm": "x", "path": str(directory / "htpasswd")}}
    authority = None
    if tls:
        authority = directory / "authority"
        authority.mkdir()
        issuer = trustme.CA()
        issuer.cert_pem.write_to_path(str(authority / "ca.crt"))
        certificate = issuer.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(directory / "server.pem"))
        pem = str(directory / "server.pem")
        http["tls"] = {"certificate": pem, "key": pem}
    (directory / "config.yml").write_text(json.dumps(configuration))  # JSON is YAML
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(directory / "config.yml")], stdout=log, stderr=log
        )
    try:
        _wait_for(port, process, directory / "log")
        yield DockerRegistry(f"localhost:{port}", content, authority)
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1000):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    pytest.fail(f"docker-registry does not listen: {log.read_text()}")


def skopeo(*arguments: str) -> str:
    """Run skopeo; returns what it prints."""
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def skopeo_push(registry: DockerRegistry, source: str, repository: str, *options: str) -> None:
    """Have skopeo copy an image into the registry."""
    skopeo(
        "copy", "--quiet", "--dest-tls-verify=false", *options, source,
        f"docker://{registry.name}/{repository}",
    )  # fmt: skip
