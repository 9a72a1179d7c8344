"""Amounts of bytes, for people."""

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def amount(nbytes: int) -> str:
    """A number of bytes: ``'7.2 GB'``, ``'2.3 MB'``."""
    unit, name = next(pair for pair in _UNITS if nbytes >= pair[0] or pair == _UNITS[-1])
    return f"{nbytes / unit:.1f} {name}"
