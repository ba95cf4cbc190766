"""An import that dies at any step, or fails at any step, leaves the store as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerstore import session
from layerstore.errors import StoreError
from layerstore.refs import Refs
from layerstore.store import Store
from tests.layerstore.archives import Item, layout_of, tar_of
from tests.layerstore.stores import BASE, TOP, image_ids, litter, problems
from tests.layerstore.test_index import mounted

STEPS = frozenset(
    ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "fcntl.flock")
)
DIED = 9


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; returns its exit status, 0 if it came to its end."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            work()
            status = 0
        except StoreError:
            status = 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_step(number: int, root: Path, happen: Callable[[], None]) -> None:
    """Have something happen before the `number`-th change to the store from now on.

    For good: only in a process that ends.
    """
    left = number
    under = os.fsencode(root)

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            happen()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in STEPS:
            return
        if event != "fcntl.flock":
            path = arguments[0]
            if not isinstance(path, bytes | str) or not os.fsencode(path).startswith(under):
                return
        step()

    sys.addaudithook(hook)
    plain = Refs.transaction

    @contextlib.contextmanager
    def transaction(self: Refs) -> Iterator[None]:
        with plain(self):
            yield
            step()
        step()

    Refs.transaction = transaction  # type: ignore[method-assign]


def import_both(root: Path, source: str) -> None:
    with Store.open(str(root), create=True) as store:
        store.import_image(source, "name")


@pytest.fixture
def source(tmp_path: Path) -> str:
    return layout_of([BASE, TOP]).archive(tmp_path / "image.tar")


def test_killed_at_every_step(tmp_path: Path, source: str) -> None:
    number = outcomes = 0
    while True:
        number += 1
        root = tmp_path / f"store-{number}"

        def work(root: Path = root, number: int = number) -> None:
            at_step(number, root, lambda: os._exit(DIED))
            import_both(root, source)

        status = in_child(work)
        assert status in (0, DIED)
        if status == 0:
            break
        ids = image_ids(root)
        outcomes |= 1 << len(ids)
        if ids:
            assert problems(root) == []
        # The next import tidies up; afterwards nothing tells that there ever was a crash.
        import_both(root, source)
        assert problems(root) == []
        assert litter(root) == []
        assert len(image_ids(root)) == 1
    assert number > 40
    assert outcomes == 0b11  # some crashed before it was visible, some after


def test_a_removal_killed_at_every_step(tmp_path: Path, source: str) -> None:
    first = tmp_path / "store"
    import_both(first, source)
    with Store.open(str(first)) as store:
        store.import_image(layout_of([BASE]).archive(tmp_path / "base.tar"), "base")
        lease = store.leases.add(store.resolve("name").id)
        store.leases.remove(lease.name)
    number = 0
    outcomes: set[int] = set()
    while True:
        number += 1
        root = tmp_path / f"store-{number}"
        shutil.copytree(first, root)

        def work(root: Path = root, number: int = number) -> None:
            at_step(number, root, lambda: os._exit(DIED))
            with Store.open(str(root)) as store:
                store.remove("name")

        status = in_child(work)
        assert status in (0, DIED)
        assert problems(root) == []
        outcomes.add(len(image_ids(root)))
        if status == 0:
            assert litter(root) == []
            break
        with Store.open(str(root)) as store:
            store.collect()
        assert problems(root) == []
        assert litter(root) == []
        shutil.rmtree(root)
    assert number > 10
    assert outcomes == {1, 2}


def test_failing_at_every_step(tmp_path: Path, source: str) -> None:
    number = 0
    while True:
        number += 1
        root = tmp_path / f"store-{number}"
        Store.open(str(root), create=True).close()

        def work(root: Path = root, number: int = number) -> None:
            def fail() -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            with Store.open(str(root)) as store:
                at_step(number, root, fail)
                with contextlib.suppress(OSError):
                    store.import_image(source, "name")
                    return
            raise StoreError

        status = in_child(work)
        assert status in (0, 1)
        ids = image_ids(root)
        if ids:
            assert problems(root) == []
        if not ids:
            assert litter(root) == []
        with Store.open(str(root)) as store:
            store.collect()
        assert litter(root) == []
        if status == 0 and ids and number > 40:
            break


@pytest.mark.skipif(os.geteuid() != 0, reason="a small filesystem to fill needs root to mount")
def test_a_full_disk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from layerstore.cli import run

    big = tar_of([Item(f"f{number}", os.urandom(1 << 20)) for number in range(8)])
    source = layout_of([BASE, big], compress="").archive(tmp_path / "big.tar")
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as small:
        root = small / "store"
        assert run(["--root", str(root), "import", source]) == 1
        err = capfd.readouterr().err
        assert "no space left for the store: nothing was imported" in err
        assert err.count("\n") == 1
        assert image_ids(root) == []
        assert litter(root) == []
        good = layout_of([BASE]).archive(tmp_path / "good.tar")
        assert run(["--root", str(root), "import", good]) == 0
        assert problems(root) == []


def test_many_at_once(tmp_path: Path, source: str) -> None:
    root = tmp_path / "store"
    other = layout_of([BASE, tar_of([Item("x", b"x" * 9000)])]).archive(tmp_path / "other.tar")
    command = [sys.executable, "-m", "layerstore", "--root", str(root)]
    running = [
        subprocess.Popen([*command, "import", which, "--tag", f"n{number}"], stdout=-1, stderr=-1)
        for number, which in enumerate([source, other, source, other, source])
    ]
    for process in running:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b""), out
    assert problems(root) == []
    assert litter(root) == []
    assert len(image_ids(root)) == 2
    with Store.open(str(root)) as store:
        assert sum(len(image.tags) for image in store.images()) == 5


def test_imports_and_removals_at_once(tmp_path: Path, source: str) -> None:
    root = tmp_path / "store"
    code = (
        "import sys\n"
        "from layerstore.store import Store\n"
        "from layerstore.errors import ImageUnknown, ImageInUse\n"
        "with Store.open(sys.argv[1], create=True) as store:\n"
        "    for round in range(6):\n"
        "        store.import_image(sys.argv[2], sys.argv[3])\n"
        "        try:\n"
        "            store.remove(sys.argv[3])\n"
        "        except (ImageUnknown, ImageInUse):\n"
        "            pass\n"
    )
    other = layout_of([BASE]).archive(tmp_path / "other.tar")
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(root), which, name], stderr=-1)
        for which, name in ((source, "a"), (other, "b"), (source, "c"))
    ]
    for process in running:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, b"")
    assert problems(root) == []
    with Store.open(str(root)) as store:
        store.collect()
    assert litter(root) == []


def test_killed_imports_leave_nothing_for_long(tmp_path: Path) -> None:
    root = tmp_path / "store"
    big = tar_of([Item(f"f{number}", os.urandom(40_000)) for number in range(300)])
    source = layout_of([big], compress="").archive(tmp_path / "big.tar")
    Store.open(str(root), create=True).close()
    command = [sys.executable, "-m", "layerstore", "--root", str(root), "import", source]
    for tenths in range(1, 8):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(tenths / 12)
        process.kill()
        process.wait()
        assert problems(root) == []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert problems(root) == []
    assert litter(root) == []


def test_an_import_that_ends_while_leftovers_are_looked_for_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = os.fsencode(tmp_path)
    (tmp_path / "tmp" / "ends").mkdir(parents=True)
    listdir = os.listdir

    def listed(path: bytes) -> list[bytes]:
        names = listdir(path)
        if b"ends" in names:
            (tmp_path / "tmp" / "ends").rmdir()
        return names

    monkeypatch.setattr(os, "listdir", listed)
    assert not session.sweep(root)
    assert listdir(tmp_path / "tmp") == []
