"""The layerstore command."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from layerstore.cli import run
from tests.layerstore.archives import Item, layout_of, tar_of
from tests.layerstore.stores import BASE, TOP, image_ids, litter


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with an image, named by the environment."""
    root = tmp_path / "store"
    monkeypatch.setenv("LAYERSTORE_ROOT", str(root))
    source = layout_of([BASE, TOP]).archive(tmp_path / "a.tar")
    assert run(["import", source, "--tag", "app:1"]) == 0
    return root


@pytest.fixture
def out(capfd: pytest.CaptureFixture[str], root: Path) -> pytest.CaptureFixture[str]:
    capfd.readouterr()
    return capfd


def test_import_prints_id_and_tags(out: pytest.CaptureFixture[str], root: Path) -> None:
    with open(root.parent / "r.tar", "wb") as file:
        file.write(tar_of([Item("f", b"x")]))
    assert run(["import", "-t", "r", f"tar:{root.parent}/r.tar"]) == 0
    text, err = out.readouterr()
    assert text.startswith("sha256:")
    assert text.endswith(" r:latest\n")
    assert err == ""  # no progress bars where nobody watches
    assert run(["--json", "import", f"tar:{root.parent}/r.tar"]) == 0
    assert json.loads(out.readouterr().out)["tags"] == ["r:latest"]


def test_images(out: pytest.CaptureFixture[str]) -> None:
    assert run(["images"]) == 0
    head, row = out.readouterr().out.splitlines()
    assert head.split() == ["NAME", "ID", "LAYERS", "SIZE", "IMPORTED"]
    assert row.split()[0] == "app:1"
    assert row.split()[2:5] == ["2", "24", "kB"] or row.split()[2] == "2"
    assert run(["images", "--json"]) == 0
    (image,) = json.loads(out.readouterr().out)
    assert image["tags"] == ["app:1"]


def test_inspect(out: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "app:1"]) == 0
    text = out.readouterr().out
    assert "linux/amd64" in text
    assert "layers, top first:\n    2 sha256:" in text
    assert run(["inspect", "--json", "app:1"]) == 0
    details = json.loads(out.readouterr().out)
    assert [layer["entries"] for layer in details["layers"]] == [7, 4]
    assert all(os.path.exists(layer["index"]) for layer in details["layers"])
    assert os.path.exists(details["index"])
    assert details["config"]["os"] == "linux"


def test_tag_rm_gc_fsck(out: pytest.CaptureFixture[str], root: Path) -> None:
    assert run(["tag", "app:1", "app:2"]) == 0
    assert run(["fsck", "--content"]) == 0
    assert out.readouterr().out == "nothing wrong\n"
    assert run(["rm", "app:2", "missing", "app:1"]) == 1
    text, err = out.readouterr()
    assert "freed " in text
    assert err.startswith("layerstore: missing: no such image")
    assert image_ids(root) == []
    assert run(["gc", "--json"]) == 0
    assert json.loads(out.readouterr().out) == {"objects": 0, "bytes": 0, "indexes": 0}
    assert litter(root) == []


def test_uppers(out: pytest.CaptureFixture[str], root: Path) -> None:
    from layerstore.store import Store

    with Store.open() as store:
        store.named_upper("web", store.resolve("app:1"))
    assert run(["uppers"]) == 0
    assert out.readouterr().out.split() == ["NAME", "IMAGE", "web", "app:1"]
    assert run(["rm", "app:1"]) == 1
    assert "layerstore rm --upper NAME" in out.readouterr().err
    assert run(["rm", "--upper", "web"]) == 0
    assert run(["rm", "app:1"]) == 0


@pytest.mark.parametrize("arguments", [[], ["imprt"], ["import"], ["images", "--no"], ["rm"]])
def test_wrong_usage(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run(arguments)
    assert error.value.code == 2
    assert "usage: layerstore" in capfd.readouterr().err


def test_help_names_the_sources(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["import", "--help"])
    assert "oci-archive:PATH[:TAG]" in capfd.readouterr().out


def test_progress_on_a_terminal(root: Path) -> None:
    path = root.parent / "big.tar"
    path.write_bytes(tar_of([Item("f", os.urandom(1 << 22))]))
    main, terminal = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "layerstore", "import", f"tar:{path}"],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        check=True,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(main)
    assert b"big.tar" in shown
    assert b"MB" in shown
    assert done.stdout.startswith(b"sha256:")


def test_output_to_a_closed_pipe(root: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m layerstore inspect --json app:1 | true",
        shell=True,
        capture_output=True,
        check=False,
    )
    assert done.stderr == b""


def test_starts_without_the_heavy_parts(root: Path) -> None:
    code = (
        "import sys; from layerstore.store import Store\n"
        "Store.open().resolve('app:1')\n"
        "print([m for m in ('rich', 'zstandard', 'isal', 'trio', 'overlayfs_py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"[]\n"
