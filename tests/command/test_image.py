"""Images of the layer store through the command: read-only, with an upper of one's own, with a named one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerstore.store import Store
from tests.command.command import refusal, run

pytestmark = pytest.mark.mount


def test_read_only(base: Path) -> None:
    assert run("mount", "--ro", "app", "m", cwd=base).returncode == 0
    assert (base / "m/file").read_bytes() == b"app"
    with pytest.raises(OSError, match="Read-only file system"):
        (base / "m/new").touch()
    assert run("diff", "m", cwd=base).stdout == ""
    assert run("umount", "m", cwd=base).returncode == 0


def test_an_upper_of_ones_own(base: Path) -> None:
    (base / "u,p").mkdir()
    (base / "w").mkdir()
    done = run("mount", "--upper", "u,p", "--work", "w", "app", "m", cwd=base)
    assert done.returncode == 0, done.stderr
    (base / "m/etc/hosts").write_text("two")
    assert (base / "u,p/etc/hosts").read_text() == "two"
    assert run("umount", "m", cwd=base).returncode == 0


def test_a_named_upper_is_found_again(base: Path) -> None:
    assert run("mount", "--name", "mine", "app", "m", cwd=base).returncode == 0
    (base / "m/etc/hosts").write_text("two")
    (base / "m/file").unlink()
    assert run("diff", "m", cwd=base).stdout == "C /etc\nC /etc/hosts\nD /file\n"
    (answer,) = json.loads(run("which", "--json", "m/etc/hosts", cwd=base).stdout)
    assert answer["copied_up"]
    assert answer["from"]["layer"] == "upper"
    (shadow,) = answer["shadows"]
    assert shadow["layer"] == "lower"
    assert shadow["place"].startswith("sha256:")
    listed = [m for m in json.loads(run("ps", "--json").stdout) if m["name"] == "mine"]
    assert [(m["image"], m["mountpoint"]) for m in listed] == [("app", str(base / "m"))]
    assert run("umount", "m", cwd=base).returncode == 0
    assert run("mount", "--name", "mine", "app", "m", cwd=base).returncode == 0
    assert (base / "m/etc/hosts").read_text() == "two"
    assert not (base / "m/file").exists()
    assert run("umount", "m", cwd=base).returncode == 0
    assert "choose another name" in refusal("mount", "--name", "mine", "other", "m", cwd=base)


def test_what_does_not_exist_is_one_line(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such image" in refusal("mount", "nothing", "m", cwd=base)
    assert "no such image" in refusal("mount", "--name", "mine", "nothing", "m", cwd=base)
    assert "there is no layer store" in refusal("mount", "--root", "empty", "app", "m", cwd=base)
    assert "does not exist" in refusal("mount", "--name", "mine", "app", "nowhere", cwd=base)
    with Store.open() as store:
        assert store.uppers() == {}
