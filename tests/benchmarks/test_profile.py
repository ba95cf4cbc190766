"""tools/profile looks into our daemon, and says what it cannot look into."""

from pathlib import Path

import pytest

from benchmarks import profiling


@pytest.mark.mount
def test_a_row_is_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    words = ["create@tmpfs", "--seconds", "1", "--output", str(picture)]
    assert profiling.main([*words, "--directory", str(tmp_path)]) == 0
    text = picture.read_text()
    assert "overlayfs_py/" in text  # Python frames
    assert "libc.so" in text  # native frames
    assert [path.name for path in tmp_path.iterdir()] == ["picture.svg"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mount"], "name one of them with its base"),
        (["nothing"], "no such row"),
        (["create@tmpfs", "--subject", "plain"], "only rows on one mount of a program"),
        (["mount/daemon=fresh/layers=1@disk", "--subject", "sh"], "only rows on one mount"),
        (["create@tmpfs", "--subject", "/no/such"], "no such program"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profiling.main([*words, "--output", str(tmp_path / "x.svg")]) == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
