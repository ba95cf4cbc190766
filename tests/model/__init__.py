"""The reference model of a POSIX tree, and what is compared with it: the union by its verbs, the
union mounted, the kernel's overlayfs, fuse-overlayfs.

- `tree`, `acl`: the model. `layers`: random layer stacks, written to disk and merged into a model.
- `generate`: random operations, chosen by what the model holds. An operation is plain data and
  can be replayed.
- `mounted`, `verbs`: subjects, which carry an operation out. `observe`: everything visible of a
  subject, as data.
- `compare`: runs operations on model and subjects side by side; shortens a failing sequence.
"""
