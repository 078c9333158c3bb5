r"""Whether a text solves a problem whose solution is a number, as it is done for GSM8K.

The number that a text gives as its answer is, by the first of these that it has:

1. what follows the last `####` that a number follows (GSM8K's own way);
2. the last number in the last `\boxed{...}` that holds one;
3. the last number.

A number may have a sign, a currency, thousands separated by commas and decimals: 1,234.50, -$3, $-3
and .5 are numbers; 20% is 20, and the full stop that ends a sentence is no part of one. A minus
after a digit, a letter or a bracket is an operator: 16-3 ends in 3. Fractions and powers of ten are
not read as one number: 1/2 ends in 2.
"""

import bisect
import re
from collections.abc import Sequence
from decimal import Decimal

_SIGN = "[-+\N{MINUS SIGN}]"
_NUMBER = re.compile(
    rf"""
    (?: (?<![\w)\]}}%]) (?P<sign>{_SIGN}) )?  # A sign that is no operator,
    [$€£¥]?                                   # a currency,
    (?P<late_sign>(?<=[$€£¥]){_SIGN})?        # a sign behind it,
    (?P<digits>
      [0-9]{{1,3}} (?:,[0-9]{{3}})+ (?![0-9]) (?:\.[0-9]+)?
      | [0-9]+ (?:\.[0-9]+)?
      | (?<![0-9A-Za-z]) \.[0-9]+
    )
    """,
    re.VERBOSE,
)
_MARKER = "####"
_BOX = r"\boxed"  # Before its brace.
_BRACE = re.compile("[{}]")
# What may stand between the marker and its number: bold face, mathematics, a box.
_DECORATION = re.compile(r"(?:\s|\*|\\\(|\\boxed\{|\$(?=\\boxed))*")
# LaTeX's ways to set 1,234 and $5 become plain ones.
_LATEX = (("{,}", ","), (r"\,", ""), (r"\!", ""), (r"\$", "$"), (r"\%", "%"))


def extract_number(text: str) -> Decimal | None:
    r"""Returns the number that a text gives as its answer.

    Args:
      text: a solution: `#### 1,234`, `\boxed{18}`, or words in which the last number is the answer.

    Returns:
      The number, exactly as it was written; None where there is none.
    """
    for written, plain in _LATEX:
        text = text.replace(written, plain)
    found = _marked(text)
    if found is None:
        numbers = list(_NUMBER.finditer(text))
        found = _boxed(text, numbers) or (numbers[-1] if numbers else None)
    return None if found is None else _as_decimal(found)


def is_correct(text: str, reference: str) -> bool:
    """Returns whether a text gives the number of a reference as its answer.

    Args:
      text: a solution.
      reference: the right number, or a solution that gives it.

    Returns:
      Whether both give numbers and these are equal: 18 is 18.00.

    Raises:
      ValueError: the reference gives no number.
    """
    return extract_number(text) == _reference_number(reference)


def answer_numbers(texts: Sequence[str], reference: str) -> list[int]:
    """Returns a number for the answer of each text, such that equal answers have equal numbers.

    Args:
      texts: solutions of one problem.
      reference: the right number, or a solution that gives it.

    Returns:
      0 for the right answer, 1 and on for the others in the order in which they come, -1 where a
      text gives none: what votes are counted by.

    Raises:
      ValueError: the reference gives no number.
    """
    known = {_reference_number(reference): 0}
    found = (extract_number(text) for text in texts)
    return [-1 if number is None else known.setdefault(number, len(known)) for number in found]


def _reference_number(reference: str) -> Decimal:
    number = extract_number(reference)
    if number is None:
        raise ValueError(f"reference must give a number, got {reference!r}.")
    return number


def _as_decimal(match: re.Match[str]) -> Decimal:
    number = Decimal(match["digits"].replace(",", ""))
    sign = match["sign"] or match["late_sign"]
    # Copied, since arithmetic would round to the context's digits.
    return number if sign in (None, "+") else number.copy_negate()


def _marked(text: str) -> re.Match[str] | None:
    """The number right behind the last marker that has one there."""
    place = text.rfind(_MARKER)
    while place >= 0:
        decoration = _DECORATION.match(text, place + len(_MARKER))
        assert decoration is not None
        found = _NUMBER.match(text, decoration.end())
        if found is not None:
            return found
        place = text.rfind(_MARKER, 0, place)
    return None


def _boxed(text: str, numbers: Sequence[re.Match[str]]) -> re.Match[str] | None:
    """The last number in the last box that has one; a box that is not closed ends with the text."""
    opened: list[int] = []
    braces = []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif opened:
            braces.append((opened.pop(), brace.start()))
    braces += [(start, len(text)) for start in opened]
    ends = [number.end() for number in numbers]
    for start, end in sorted(braces, reverse=True):
        if text.endswith(_BOX, 0, start):
            place = bisect.bisect_right(ends, end) - 1
            if place >= 0 and numbers[place].start() > start:
                return numbers[place]
    return None
