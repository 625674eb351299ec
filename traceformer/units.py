"""Amounts in words."""

__all__ = ["amount_of_bytes", "duration"]

_STEPS = ("B", "kB", "MB", "GB", "TB", "PB")


def amount_of_bytes(size: float) -> str:
    """Returns three significant digits and a decimal unit: `1.23 MB` is 1,230,000 bytes."""
    step = 0
    while size >= 999.5 and step < len(_STEPS) - 1:
        size /= 1000
        step += 1
    digits = 0 if step == 0 or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {_STEPS[step]}"


def duration(seconds: float) -> str:
    """Returns `0.8 s`, `45 s`, `3 min 05 s` or `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
