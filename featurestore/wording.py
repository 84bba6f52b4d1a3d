"""Numbers, ranges and errors in messages: ``1 chunk``, ``1,234 chunks``, ``12 to 15 words``."""

from __future__ import annotations


def amount(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun.

    Args:
        count: the number.
        noun: in the singular, with the words before it: ``"bad input"``.
        plural: where it is not the singular with an ``s``.
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def span(least: int, most: int, noun: str, plural: str = "") -> str:
    """The smallest and the largest of some numbers, or the number that both are."""
    if least == most:
        return amount(most, noun, plural)
    return f"{least:,} to {amount(most, noun, plural)}"


def one_line(error: BaseException, most: int = 200) -> str:
    """An error's message in one line of at most ``most`` characters; its type if it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"


def first_line(error: BaseException) -> str:
    """What happened, where a library adds lines of advice; at most 200 characters."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
