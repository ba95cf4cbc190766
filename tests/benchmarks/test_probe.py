"""The compiled helper: it does what it says, counts what it did, and names what was refused."""

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import probe
from benchmarks.errors import CannotMeasure, UserError
from benchmarks.forge import Forge, Site, numbered, shuffled


@pytest.fixture(scope="module")
def binary() -> Path:
    """The helper, compiled."""
    return probe.build()


@pytest.fixture
def forge(binary: Path, tmp_path: Path) -> Forge:
    """Lists of names below a scratch directory."""
    return Forge(binary, tmp_path / "names")


def call(
    forge: Forge, operation: str, directory: Path, names: list[str], **numbers: int
) -> probe.ProbeResult:
    """One call of the helper."""
    argv = probe.command_line(forge.binary, operation, directory, forge.names(names), **numbers)
    done = subprocess.run(argv, capture_output=True, check=False)
    return probe.read_output(done.stdout, done.returncode)


def test_each_operation_does_its_work(forge: Forge, tmp_path: Path) -> None:
    d = tmp_path / "d"
    d.mkdir()
    names = numbered(20)
    assert call(forge, "absent", d, names).operations == 20
    call(forge, "write", d, names, size=4096)
    assert {path.stat().st_size for path in d.iterdir()} == {4096}
    assert call(forge, "stat", d, names, passes=3, warm=1).operations == 60
    for operation in ("open", "chown", "utimens"):
        assert call(forge, operation, d, names).operations == 20
    assert call(forge, "read", d, names, size=4096).operations == 20
    call(forge, "chmod", d, names)
    assert {path.stat().st_mode & 0o777 for path in d.iterdir()} == {0o600}
    call(forge, "append", d, names, size=1)
    call(forge, "first-byte", d, names)
    assert (d / names[0]).read_bytes() == b"y" + b"x" * 4096
    call(forge, "truncate", d, names, size=7)
    assert {path.stat().st_size for path in d.iterdir()} == {7}
    call(forge, "setxattr", d, names)
    assert os.getxattr(d / names[0], "user.benchmark") == b"value"
    call(forge, "getxattr", d, names)
    call(forge, "listxattr", d, names)
    call(forge, "link", d, names)
    assert (d / names[0]).stat().st_nlink == 2
    call(forge, "unlink", d, names)
    call(forge, "symlink", d, names)
    call(forge, "readlink", d, names)
    call(forge, "unlink", d, names)
    call(forge, "mkdir", d, names)
    assert call(forge, "walk", d, names).operations == 40
    call(forge, "unlink", d, [name + ".second" for name in names])
    call(forge, "rename", d, names)
    assert sorted(os.listdir(d)) == [name + ".second" for name in names]
    assert call(forge, "list", d, names).operations == 20
    assert call(forge, "syscall", d, names).operations == 20
    assert call(forge, "switch", d, names).operations == 20


def test_times_are_of_the_operations(forge: Forge, tmp_path: Path) -> None:
    found = call(forge, "create", tmp_path, numbered(200))
    assert 0 < found.p50_ns <= found.p99_ns <= found.max_ns <= found.wall_ns
    assert found.p50_ns * 100 <= found.wall_ns


def test_a_delay_in_lookup_is_there(forge: Forge, tmp_path: Path) -> None:
    names = numbered(500)
    call(forge, "create", tmp_path, names)
    without = call(forge, "stat", tmp_path, names, passes=20)
    delayed = call(forge, "stat", tmp_path, names, passes=20, delay_ns=5000)
    # The median of single operations: on a busy machine the sum has others' work in it too.
    assert delayed.p50_ns - without.p50_ns == pytest.approx(5000, abs=1500)
    assert call(forge, "open", tmp_path, names, delay_ns=10**9).wall_ns < 10**9


@pytest.mark.parametrize(
    ("operation", "errno"),
    [("stat", "ENOENT"), ("unlink", "ENOENT"), ("nonsense", "EINVAL"), ("rename", "ENOENT")],
)
def test_what_is_refused_is_named(forge: Forge, tmp_path: Path, operation: str, errno: str) -> None:
    with pytest.raises(CannotMeasure, match=errno):
        call(forge, operation, tmp_path, ['odd "name" \\'])


def test_a_name_that_exists_is_not_absent(forge: Forge, tmp_path: Path) -> None:
    call(forge, "create", tmp_path, ["here"])
    with pytest.raises(CannotMeasure, match="EEXIST"):
        call(forge, "absent", tmp_path, ["here"])


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = probe.build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    before = first.stat()
    assert probe.build(tmp_path).stat() == before
    monkeypatch.setenv("CC", "/no/such/compiler")
    with pytest.raises(UserError, match="no C compiler '/no/such/compiler'"):
        probe.build(tmp_path)
    monkeypatch.setenv("CC", "false")
    with pytest.raises(UserError, match="false cannot compile"):
        probe.build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_layers_are_what_was_asked_for(forge: Forge, tmp_path: Path) -> None:
    def lay(site: Site) -> list[str]:
        return site.spread(numbered(10), 3, 5)

    layers = forge.layers(tmp_path, "key", 0, lay)
    assert layers.names == ("0", "1", "2")
    assert sorted(os.listdir(layers.paths()[1] / "d")) == ["f000001", "f000004", "f000007"]
    merged = forge.merged(layers)
    assert sorted(os.listdir(merged / "d")) == numbered(10)
    assert forge.layers(tmp_path, "key", 0, lambda site: []) == layers
    with pytest.raises(CannotMeasure, match="MiB to spare"):
        forge.layers(tmp_path, "other", 1 << 60, lay)


def test_a_shuffle_is_the_same_every_time() -> None:
    assert shuffled(numbered(9)) == shuffled(numbered(9)) != numbered(9)
    assert sorted(shuffled(numbered(9))) == numbered(9)
    assert len(shuffled(numbered(9), 4)) == 4
