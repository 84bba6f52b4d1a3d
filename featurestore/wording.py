"""Formats numbers, ranges and errors: ``1 chunk``, ``1,234 chunks``, ``12 to 15 words``."""

from __future__ import annotations


def amount(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun.

    Args:
        count: the number.
        noun: the noun in the singular, with any adjectives: ``"bad input"``.
        plural: the plural, if it is not the singular with an ``s``.
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def span(least: int, most: int, noun: str, plural: str = "") -> str:
    """A range of numbers with its noun; a single number if both ends are equal."""
    if least == most:
        return amount(most, noun, plural)
    return f"{least:,} to {amount(most, noun, plural)}"


def one_line(error: BaseException, most: int = 200) -> str:
    """An error's message in one line of at most ``most`` characters; its type if that is empty."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a library's advice; at most 200 characters."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def human_bytes(count: float) -> str:
    """A size in binary units: ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
