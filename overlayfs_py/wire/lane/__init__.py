"""The lane: requests that are answered without Python.

Problem. A request that reaches a verb costs some 40 us of interpreter before the first system call. Most requests are
lookups, listings and reads of plain files of lower layers, which never change while they are mounted.

What is answered. A directory in which lookups become many, or that is listed, is *published*: its names are read once
from each layer, and for each name it is known which layer has it first. From then on the lane answers LOOKUP of what
shows from one side alone, lower layers or the upper, and of names that are nowhere; GETATTR, READLINK, xattrs, OPEN
for reading, READ of what is cached, RELEASE and FORGET of the nodes that it told the kernel of; and listings of
directories that show what is in lower layers, or what is in the upper, but not both. The lower layers are either
directories, of which everything is asked of the filesystem, or an image, all of which is read from its mapped index:
a listing with entries then takes no system call. What is below a directory that the lane has told of it publishes by
itself, when somebody looks. Merged directories, whatever has marks, and all other changes are Python's; so is every
file with several names where there is an upper, whose index may have another file for it.

What is changed (changes.pxi, directories.pxi). In a directory that is in the upper, published or the lane's own: a
new symlink or directory, and a new file where the upper's files go to the kernel in passthrough, under a name that no
layer has and of a caller with the daemon's own ids; what is plain in the upper and is renamed to a free name or
removed (a file or symlink may replace another), or whose attributes change; plain upper files that are opened for
passthrough; plain lower files that a whiteout hides. Each is one system call on the upper, so no crash shows half of
it, and one that fails, or finds anything that is not plain, leaves the request as it came to Python. Plain is a file
or symlink with one name and, in the upper, without xattrs: it has no mark that a verb would read. A directory of the
upper is plain if no layer below has its name, and if it has no xattr but perhaps the opaque mark, which one gets
beside lower layers: made, it hides nothing yet, and it can be marked before it is renamed. The label that SELinux gives
every file counts as no xattr here, but for a copy-up.

What is copied up (copying_up.pxi). A lower file, of a directory or an image, with one name, without xattrs, setuid,
setgid and holes, that is not open and whose data is small or not wanted, when it is opened for writing in passthrough
or its attributes change. The copy is a file without a name until one link puts it, complete, where it belongs.

Why that is right. A node that the kernel knows is either the lane's or Python's (wire.nodes), never both:

- Node ids of the lane begin at FIRST_ID, so one look tells whose a request may be.
- Before Python sees a request about a node of the lane, it takes the node over (wire.device.laned), and before that
  the directories on the way to it: it looks each name up itself, enters the node under the id and with the lookup
  count that the lane had, and goes on with its open files. What was published of a directory stays so.
- Before Python runs a verb that changes a name, it retracts the name: a node of the lane behind it is taken over, and
  from then on the lane leaves that name to Python. So there is nothing that a change could make stale.
- The directories above a node of Python's are Python's, as long as it has an object for the node: a copy-up copies them
  too. So an inode number of a directory goes back to the lane when the last reference to Python's object is gone, not
  when the kernel forgets it.
- The lane tells the kernel of no inode whose st_ino Python has claimed, and Python learns the lane's id when it claims
  an inode that it met on another way, in a listing or under another name. An inode has one node id at a time: the lane
  finds a file with several names by its number.
- A published directory lives as long as the kernel knows the directory or something in it. Python keeps a directory
  that the kernel has forgotten until nothing of the lane's is left in it. Names that Python added are remembered up to
  a limit; then the directory is closed, and published anew when its last node is gone.
- Where a directory is in the upper is known for one epoch: a rename that Python makes may be one of a directory, and
  ends it, before it is made. Then, and after a directory was copied up, the lane asks for the path before it changes
  anything there. A copied-up directory has only names that verbs made, and those were retracted. A directory of the
  lane's own has its path from the one above it, and so on up to the first that is Python's; one that the lane renames
  ends no epoch of Python's, for all that is below it is the lane's too.
- Python remembers how many directories are in one of its own, and keeps descriptors on the way to deep ones. Before
  its next verb it drops both where the lane made, removed or renamed a directory (`recounted`). After a verb it tells
  the lane the number that it has: the kernel asks for the attributes of a directory after each change in it.
- A node whose name was removed or replaced here stays the lane's without one, and is held by a descriptor or, of a
  lower file, by its path. Python takes it over as it takes one over that has a name. A removed directory has nothing
  in it, and no path.
- The kernel opens no directory (OPENDIR is refused, once), and says by node what it wants names of. An offset is made
  from a name (tables.pxi, overlay.cookies), so a listing goes on where it was whoever makes the rest of it.
- A file that was copied up here keeps its node and st_ino, and is looked at in the upper. Once the kernel forgets it
  the name is Python's, who reads the origin. Its directory was marked impure by Python before, whose listings look
  at each name then. Data that must be on the disk before it is seen is Python's to copy.
- While a file is open for writing its attributes change without a request: they are told as good for no time.
- While the gate is closed (wire.gate) the lane changes nothing, so Python gets the requests, and has them wait.
- Nothing is published for Python while slow work is under way: a name that was retracted for it stays retracted.
- An index is a file that may be damaged. Nothing outside of the mapping is read, and what does not make sense is not
  answered: Python meets it then, and says what and where it is.

Tried and left: remembering whole replies instead of names (they must be thrown away with the inode, and then a cold
lookup is not faster); open directories with handles (two requests more for each one that is walked); one table for
both sides (each verb would have to keep it right).

Compiled with Cython. Without the compiled module, or with OVERLAYFS_PY_PURE=1, Python answers everything, to the same
effect.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overlayfs_py.wire.lane.lane import Lane

log = logging.getLogger(__name__)

INTERFACE = 10
"""Counts the changes of what Python and the compiled module say to each other."""

FIRST_ID = 1 << 62
"""Node ids and file handles that the lane gives out begin with this one; Python's never reach it."""


def compiled() -> type[Lane] | None:
    """The lane's class, None where Python is to do without it."""
    if os.environ.get("OVERLAYFS_PY_PURE"):
        return None
    try:
        from overlayfs_py.wire.lane import lane
    except ImportError:
        return None
    if getattr(lane, "INTERFACE", 0) != INTERFACE:
        log.info("the compiled lane is of another version: build it again")
        return None
    return lane.Lane
