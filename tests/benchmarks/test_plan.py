"""Rows and how they are asked for; the rules that every workload keeps."""

import pytest

from benchmarks import plan, workloads
from benchmarks.errors import UserError
from benchmarks.subjects import Spec, distinct, locate, parse, with_delay
from benchmarks.workloads import WORKLOADS


def ids(cells: list[plan.Cell]) -> list[str]:
    """The ids of all rows."""
    return [row.id for cell in cells for row in cell.rows()]


def test_every_row_has_a_name_of_its_own() -> None:
    every = ids(plan.cells(False, [], []))
    assert len(set(every)) == len(every) > 150
    assert not any("," in name or " " in name for name in every)


@pytest.mark.parametrize("module", workloads.MODULES, ids=lambda module: module.__name__)
def test_a_workload_has_a_file_and_says_what_it_stands_for(module: object) -> None:
    assert (module.__doc__ or "").strip().endswith(".")
    assert module.WORKLOAD in WORKLOADS  # type: ignore[attr-defined]


def test_a_quick_run_is_part_of_a_full_one() -> None:
    quick = ids(plan.cells(True, [], []))
    assert 20 <= len(quick) <= 40
    assert set(quick) < set(ids(plan.cells(False, [], [])))


def test_any_row_can_be_asked_for_alone() -> None:
    for row in ids(plan.cells(False, [], [])):
        assert row in ids(plan.cells(True, [row], []))
        assert len(plan.cells(False, [row], [])) == 1


def test_what_needs_more_than_a_run_builds_is_taken_on_request() -> None:
    assert not any(name.startswith("family-") for name in ids(plan.cells(False, [], [])))
    assert ids(plan.cells(False, ["family-import.time*django*"], []))
    assert set(ids(plan.cells(False, [], []))) < set(ids(plan.cells(False, ["*"], [])))


def test_rows_are_asked_for_by_workload_and_pattern() -> None:
    assert {name.partition("/")[0] for name in ids(plan.cells(False, ["walk"], []))} == {"walk"}
    found = ids(plan.cells(False, ["lookup-*/layers=1@tmpfs"], []))
    assert found == ["lookup-cold/layers=1@tmpfs", "lookup-hot/layers=1@tmpfs"] or len(found) == 4


def test_bases_can_be_chosen() -> None:
    found = ids(plan.cells(False, ["walk/layers=1"], ["xfs", "btrfs"]))
    assert found == ["walk/layers=1@xfs", "walk/layers=1@btrfs"]
    with pytest.raises(UserError, match="--on zfs: not one of"):
        plan.cells(False, [], ["zfs"])


def test_an_unknown_row_gets_the_nearest_named() -> None:
    with pytest.raises(
        UserError, match="--only lookup-colt: no such row; did you mean lookup-cold"
    ):
        plan.cells(False, ["lookup-colt"], [])


def test_subjects_are_spelled() -> None:
    assert parse("plain") == Spec("plain", "plain", "", ())
    assert parse("kernel,metacopy=on") == Spec("kernel,metacopy=on", "kernel", "", ("metacopy=on",))
    assert parse("old=/opt/x/fuse-overlayfs,timeout=0") == Spec(
        "old", "program", "/opt/x/fuse-overlayfs", ("timeout=0",)
    )
    for wrong in ("", ",x", "plain,x"):
        with pytest.raises(UserError, match="--subject"):
            parse(wrong)


def test_the_same_subject_twice_has_two_labels() -> None:
    labels = [spec.label for spec in distinct([parse("plain"), parse("kernel"), parse("plain")])]
    assert labels == ["plain", "kernel", "plain#2"]


def test_a_delay_is_for_a_subject_that_is_there() -> None:
    specs = [parse("plain"), parse("kernel")]
    assert [s.lookup_delay_ns for s in with_delay(specs, "kernel:lookup=2.5")] == [0, 2500]
    for wrong in ("kernel", "kernel:lookup=x", "other:lookup=5"):
        with pytest.raises(UserError, match="--delay"):
            with_delay(specs, wrong)


def test_mount_commands_are_those_of_the_programs() -> None:
    from pathlib import Path

    place = [Path("/u"), Path("/w"), Path("/m")]
    assert parse("kernel,index=on").mount_command(["0", "1"], *place) == [
        *("mount", "-t", "overlay", "overlay"),
        *("-o", "lowerdir=0:1,upperdir=/u,workdir=/w,index=on", "/m"),
    ]
    assert parse("kernel").mount_command(["0", "1"], None, *place[1:])[5] == "lowerdir=0:1"
    assert parse("/bin/x").mount_command(["0"], *place) == [
        *("/bin/x", "-o", "lowerdir=0,upperdir=/u,workdir=/w", "/m"),
    ]
    assert locate(parse("sh")).program.startswith("/")
