"""A registry of ours on a loopback port, which can be told to misbehave."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from tests.layerstore.archives import OCI, Layout, digest_of

MANIFEST = f"{OCI}.manifest.v1+json"
INDEX = f"{OCI}.index.v1+json"
_RANGE = re.compile(r"([0-9]+)-([0-9]*)")


@dataclass
class Request:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]


class Handler(BaseHTTPRequestHandler):
    """One connection. A rule may use what is here, or all of the base class."""

    protocol_version = "HTTP/1.1"
    served: Served

    def do_GET(self) -> None:
        self._any()

    def do_HEAD(self) -> None:
        self._any()

    def do_POST(self) -> None:
        self._with_body()

    def do_PATCH(self) -> None:
        self._with_body()

    def do_PUT(self) -> None:
        self._with_body()

    def do_DELETE(self) -> None:
        self._any()

    def _with_body(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length)
        self._any()

    def _any(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers)
        self.served.requests.append(request)
        rules = [] if self.path == "/v2/" else self.served.rules
        for rule in list(rules):
            if rule(self, request):
                return
        self.answer_truly(request)

    def answer_truly(self, request: Request) -> None:
        """Answer as a registry would."""
        if "/uploads/" in request.path or request.method == "PUT":
            self._take(request)
            return
        kind, _, version = request.path.removeprefix("/v2/").rpartition("/")
        if kind.endswith("/manifests") and version in self.served.manifests:
            data, media_type = self.served.manifests[version]
            self.reply(200, data, {"Content-Type": media_type})
        elif kind.endswith("/blobs") and version in self.served.blobs:
            data = self.served.blobs[version]
            spans = spans_of(request, len(data))
            if not self.served.has_ranges or not spans:
                self.reply(200, data)
            elif len(spans) == 1 or not self.served.takes_several:
                start, end = spans[0]
                said = f"bytes {start}-{end - 1}/{len(data)}"
                self.reply(206, data[start:end], {"Content-Range": said})
            else:
                kind = "multipart/byteranges; boundary=xyz"
                self.reply(206, multipart(data, spans), {"Content-Type": kind})
        else:
            self.reply(404 if request.path != "/v2/" else 200, b"{}")

    def _take(self, request: Request) -> None:
        """Uploads, and manifests that are put."""
        path, _, text = request.path.partition("?")
        query = {name: values[0] for name, values in parse_qs(text).items()}
        start, _, last = path.rpartition("/")
        served = self.served
        if start.endswith("/manifests"):
            kind = request.headers["content-type"]
            served.manifests[last] = served.manifests[digest_of(self.body)] = self.body, kind
            self.reply(201)
        elif request.method == "POST" and query.get("mount") in served.mountable:
            served.blobs[query["mount"]] = served.mountable[query["mount"]]
            self.reply(201)
        elif request.method == "POST":
            number = str(len(served.requests))
            served.uploads[number] = b""
            self.reply(202, b"", {"Location": f"{start}/{number}?state=a%2Fb"})
        elif last not in served.uploads:
            self.reply(404)
        elif request.method == "DELETE":
            del served.uploads[last]
            self.reply(204)
        elif query["state"] != "a/b":
            self.reply(400)
        elif request.method == "GET":
            end = max(0, len(served.uploads[last]) - 1)
            self.reply(204, b"", {"Location": request.path, "Range": f"0-{end}"})
        elif not self._follows(request, len(served.uploads[last])):
            self.reply(416)
        else:
            served.uploads[last] += self.body
            if request.method == "PATCH":
                self.reply(202, b"", {"Location": request.path})
            elif digest_of(served.uploads[last]) != query["digest"]:
                self.reply(400, b'{"errors": [{"code": "DIGEST_INVALID"}]}')
            else:
                served.blobs[query["digest"]] = served.uploads.pop(last)
                self.reply(201)

    def _follows(self, request: Request, size: int) -> bool:
        said = request.headers.get("content-range", f"{size}-")
        return said.startswith(f"{size}-")

    def reply(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            if "/blobs/" in self.path:
                self.served.sent_bytes += len(data)
            with contextlib.suppress(OSError):
                self.wfile.write(data)

    def hang_up(self) -> None:
        """End the connection after what was sent."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(2)

    def log_message(self, *_: Any) -> None:
        pass


def spans_of(request: Request, size: int) -> list[tuple[int, int]]:
    """What ranges a request asks for: where each starts, and where what follows starts."""
    words = request.headers.get("range", "").removeprefix("bytes=")
    found = [_RANGE.fullmatch(word) for word in words.split(",") if word]
    return [(int(one[1]), int(one[2]) + 1 if one[2] else size) for one in found if one is not None]


def multipart(data: bytes, spans: list[tuple[int, int]], boundary: str = "xyz") -> bytes:
    """An answer of several ranges (RFC 9110, 14.6)."""
    parts = [
        f"--{boundary}\r\nContent-Type: x/y\r\nContent-Range: bytes {start}-{end - 1}/{len(data)}"
        "\r\n\r\n".encode()
        + data[start:end]
        for start, end in spans
    ]
    return b"\r\n" + b"\r\n".join(parts) + f"\r\n--{boundary}--\r\n".encode()


Rule = Callable[[Handler, Request], bool]
"""Answers a request, or returns False."""


@dataclass
class Served:
    """What is served. `name`: HOST:PORT."""

    name: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    mountable: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    has_ranges: bool = True
    takes_several: bool = True
    sent_bytes: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def add(self, layout: Layout, tag: str) -> str:
        """Serve the image of a layout; returns the digest of its manifest."""
        self.blobs.update(layout.blobs)
        digest: str = layout.index["manifests"][0]["digest"]
        kind = json.loads(layout.blobs[digest]).get("mediaType", MANIFEST)
        self.manifests[tag] = self.manifests[digest] = layout.blobs[digest], kind
        return digest

    def add_manifest(self, value: Any, kind: str, tag: str = "latest") -> str:
        """Serve any manifest; returns its digest."""
        data = json.dumps(value).encode()
        self.manifests[tag] = self.manifests[digest_of(data)] = data, kind
        return digest_of(data)

    def paths(self, method: str = "GET") -> list[str]:
        """What was asked for, without the first question whether there is TLS."""
        return [r.path for r in self.requests if r.method == method and r.path != "/v2/"]

    def sent(self, header: str) -> list[str]:
        """The values of a header in all requests."""
        return [r.headers[header] for r in self.requests if header in r.headers]


class Server(ThreadingHTTPServer):
    """Says nothing about clients that go away."""

    def handle_error(self, *_: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            raise


@contextlib.contextmanager
def serving() -> Iterator[Served]:
    """A registry, while the context lasts."""
    served = Served()
    handler = type("BoundHandler", (Handler,), {"served": served})
    server = Server(("127.0.0.1", 0), handler)
    served.name = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        served.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()
