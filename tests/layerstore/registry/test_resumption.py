"""A pull that was ended before its time: the next one goes on, and trusts nothing of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from layerstore import session
from layerstore.errors import StoreError
from layerstore.registry.access import Access
from layerstore.registry.images import pull
from layerstore.store import Store
from tests.layerstore.archives import Item, digest_of, layout_of, tar_of
from tests.layerstore.registry.refusal import at
from tests.layerstore.registry.served import Handler, Request, Served
from tests.layerstore.stores import BASE, litter, problems

BIG = tar_of([Item("big", os.urandom(4 << 20))])
LAYER = digest_of(BIG)
PART = 3 << 20
ENOUGH = 1 << 20
"""What has certainly been written when so much has come: it is written in pieces of a MiB."""


@pytest.fixture(autouse=True)
def image(served: Served) -> None:
    served.add(layout_of([BASE, BIG], compress=""), "1")


def part_only(served: Served) -> None:
    """Send the start of the layer, and no more."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BIG)))
        handler.end_headers()
        handler.wfile.write(BIG[:PART])
        handler.wfile.flush()
        served.stop.wait()
        handler.hang_up()

    served.rules.append(at(LAYER, answer))


def partial(root: Path) -> Path:
    return root / "tmp/downloads" / LAYER[7:]


def pulled(served: Served, access: Access, root: Path) -> None:
    with Store.open(str(root), create=True) as store:
        pull(store, f"{served.name}/a:1", access=access)
    assert problems(root) == []
    assert litter(root) == []


@pytest.fixture
def left(served: Served, root: Path) -> Path:
    """A pull was killed when it had a part of a layer: the file with that."""
    part_only(served)
    command = [sys.executable, "-m", "layerstore", "--root", str(root), "pull", "--insecure"]
    with subprocess.Popen([*command, f"{served.name}/a:1"]) as running:
        while not partial(root).exists() or partial(root).stat().st_size < ENOUGH:
            assert running.poll() is None
            time.sleep(0.02)
        running.kill()
    served.rules.clear()
    served.requests.clear()
    return partial(root)


def test_a_killed_pull_goes_on(served: Served, access: Access, root: Path, left: Path) -> None:
    size = left.stat().st_size
    pulled(served, access, root)
    assert served.sent("range") == [f"bytes={size}-"]


@pytest.mark.parametrize("content", [b"x" * PART, b"x" * len(BIG), b"x" * (len(BIG) + 1), b""])
def test_what_is_left_is_not_trusted(
    served: Served, access: Access, root: Path, left: Path, content: bytes
) -> None:
    left.write_bytes(content)
    pulled(served, access, root)


def test_all_of_it_was_there(served: Served, access: Access, root: Path, left: Path) -> None:
    left.write_bytes(BIG)
    pulled(served, access, root)
    assert not [path for path in served.paths() if LAYER in path]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_ended_pull_leaves_what_it_has(
    served: Served, access: Access, root: Path, number: int
) -> None:
    part_only(served)
    command = [sys.executable, "-m", "layerstore", "--root", str(root), "pull", "--insecure"]
    with subprocess.Popen([*command, f"{served.name}/a:1"], stderr=subprocess.DEVNULL) as running:
        while not partial(root).exists() or partial(root).stat().st_size < ENOUGH:
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(number)
        assert running.wait(60) in (130, 143)
    assert litter(root) == ["tmp/downloads"]
    size = partial(root).stat().st_size
    served.rules.clear()
    pulled(served, access, root)
    assert served.sent("range") == [f"bytes={size}-"]


def test_a_registry_that_fails(
    served: Served, access: Access, impatient: Access, root: Path
) -> None:
    part_only(served)
    with Store.open(str(root), create=True) as store, pytest.raises(StoreError, match="nothing"):
        pull(store, f"{served.name}/a:1", access=impatient)
    assert partial(root).stat().st_size > 0
    served.rules.clear()
    pulled(served, access, root)


def test_an_image_that_is_bad_leaves_nothing(served: Served, access: Access, root: Path) -> None:
    served.blobs[LAYER] = b"x" * len(BIG)
    with Store.open(str(root), create=True) as store, pytest.raises(StoreError, match="damaged"):
        pull(store, f"{served.name}/a:1", access=access)
    assert litter(root) == []


def test_two_pulls_at_once(served: Served, access: Access, root: Path) -> None:
    """They meet at the same layer; neither writes to the other's file."""
    together = threading.Barrier(2, timeout=20)

    def rule(handler: Handler, request: Request) -> bool:
        if LAYER in request.path:
            together.wait()
        return False

    served.rules.append(rule)
    failures: list[BaseException] = []
    with Store.open(str(root), create=True):
        pass

    def one() -> None:
        try:
            with Store.open(str(root)) as store:
                pull(store, f"{served.name}/a:1", access=access)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert problems(root) == []
    assert litter(root) == []


def test_what_nobody_came_back_for_goes(served: Served, root: Path, left: Path) -> None:
    session.sweep(os.fsencode(root))
    assert left.exists()
    then = time.time() - 2 * 24 * 3600
    for path in left.parent.iterdir():
        os.utime(path, (then, then))
    session.sweep(os.fsencode(root))
    assert litter(root) == []


def test_gc_takes_it_at_once(served: Served, root: Path, left: Path) -> None:
    with Store.open(str(root)) as store:
        store.collect()
    assert litter(root) == []
