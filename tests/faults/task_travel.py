"""What tasks return that does not arrive."""

from __future__ import annotations


class Unreadable:
    """Can be pickled, and not be unpickled."""

    def __reduce__(self):
        return _raise, ()


def _raise():
    raise RuntimeError("it can't be made again")
