"""Which number a text gives as its answer, case by case."""

import time
from decimal import Decimal

import pytest

from bellmax.experiments.data import verifiers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        # GSM8K's marker.
        ("She has 3 left.\n#### 18", "18"),
        ("#### 1,234", "1234"),
        ("#### 109,200,000", "109200000"),
        ("####18", "18"),
        ("#### -3", "-3"),
        ("#### $5.50", "5.50"),
        ("#### **7**", "7"),
        (r"#### $\boxed{9}$", "9"),
        ("#### 18 dollars, of 40", "18"),
        ("#### 5\nso #### 7", "7"),
        ("It is 5. #### 7 and then 9", "7"),
        ("#### Step 2\nThus 18.", "18"),
        ("##### 4", "4"),
        # A box.
        (r"\boxed{18}", "18"),
        (r"so \(\boxed{5}\), in 3 steps", "5"),
        (r"\boxed{\$1{,}234.50}", "1234.50"),
        (r"\boxed{18 \text{ dollars}}", "18"),
        (r"\boxed{x = 12}", "12"),
        (r"\boxed{3} or \boxed{4}", "4"),
        (r"\boxed{3} or \boxed{none}", "3"),
        (r"\boxed{yes}, 8", "8"),
        (r"\boxed{5", "5"),
        (r"#### 6, not \boxed{5}", "6"),
        # The last number.
        ("The answer is 42.", "42"),
        ("A: 18", "18"),
        ("3 apples and 4 pears make 7", "7"),
        ("It costs $1,234.50.", "1234.50"),
        ("(-$3)", "-3"),
        ("$-3", "-3"),
        ("€12", "12"),
        ("20%", "20"),
        ("x=.5", "0.5"),
        ("= -.5", "-0.5"),
        ("No.5", "5"),
        ("\N{MINUS SIGN}4", "-4"),
        ("+4", "4"),
        ("16-3", "3"),
        ("(16)-3", "3"),
        ("a-3", "3"),
        ("5 to -4", "-4"),
        ("10km", "10"),
        ("007", "7"),
        ("1, 2, 3", "3"),
        ("18.00", "18"),
        ("9" * 60, "9" * 60),
        (r"1\,234", "1234"),
        # What is not one number.
        ("1/2", "2"),
        ("12:30", "30"),
        ("1,2345", "2345"),
    ],
)
def test_numbers(text, number):
    assert verifiers.extract_number(text) == Decimal(number)


@pytest.mark.parametrize(
    "text", ["", "none", "####", r"\boxed{}", r"\boxed{", "-", "$", "٣", ".", ",", "#### \n"]
)
def test_no_number(text):
    assert verifiers.extract_number(text) is None
    assert not verifiers.is_correct(text, "5")


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("The answer is 18.00", "#### 18", True),
        ("$1,000", "1000", True),
        ("18.5", "18", False),
        ("-18", "18", False),
        ("0.1", "0.10", True),
        # Compared as decimals: the nearest floats would be one number.
        ("0.1", "0.1000000000000000055511151231257827", False),
        ("1" + "0" * 40, "1" + "0" * 39 + "1", False),
    ],
)
def test_verdicts(text, reference, expected):
    assert verifiers.is_correct(text, reference) is expected


def test_a_reference_gives_a_number():
    with pytest.raises(ValueError, match="reference must give a number, got 'none'"):
        verifiers.is_correct("5", "none")


def test_equal_answers_have_equal_numbers_in_a_vote():
    texts = ["#### 7", "It is 5.0", "none", "7.00", "5", "#### 18", "9"]
    assert verifiers.answer_numbers(texts, "#### 18") == [1, 2, -1, 1, 2, 0, 3]


@pytest.mark.parametrize("unit", ["#", "####", r"\boxed{", "{", "-", "1,", "9", "a.", "#### "])
def test_long_garbage_is_read_in_no_time(unit):
    began = time.perf_counter()
    verifiers.extract_number(unit * (20_000 // len(unit)))
    assert time.perf_counter() - began < 5
