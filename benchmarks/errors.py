"""What a benchmark can say to its user, and what it notes in a result."""


class UserError(Exception):
    """A mistake of the user's or a lack of the machine's: its text is the one line shown."""


class CannotMeasure(Exception):
    """One subject cannot run one row; its text is the reason, noted in the result.

    The run goes on: a rename that a filesystem refuses with EXDEV says something about that
    filesystem, and a missing program says something about the machine.
    """
