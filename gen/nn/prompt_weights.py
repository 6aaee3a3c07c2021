"""Prompt weights in AUTOMATIC1111's grammar.

    (word)  1.1 times      (word:1.3)  1.3 times      [word]  1 / 1.1 times      \\( \\) \\[ \\] \\\\  the character itself

Brackets nest and multiply; one that is never closed reaches to the end; a closing one without its opening is text.
"""

from __future__ import annotations

import re

ROUND, LIMIT = 1.1, 10.0
_NUMBER = re.compile(r":\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)")


def weighted(text: str) -> tuple[str, list[float]]:
    """(the text without its markup, the weight of each of its characters). ValueError for weights beyond +-10."""
    plain: list[str] = []
    weights: list[float] = []
    round_, square = [], []  # where brackets opened

    def scale(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    i = 0
    while i < len(text):
        character, number = text[i], _NUMBER.match(text, i)
        i += 1
        if character == "\\" and text[i : i + 1] in tuple("()[]\\"):
            plain.append(text[i])
            weights.append(1.0)
            i += 1
        elif character == "(":
            round_.append(len(plain))
        elif character == "[":
            square.append(len(plain))
        elif number and round_:
            scale(round_.pop(), float(number[1]))
            i = number.end()
        elif character == ")" and round_:
            scale(round_.pop(), ROUND)
        elif character == "]" and square:
            scale(square.pop(), 1 / ROUND)
        else:
            plain.append(character)
            weights.append(1.0)
    for start in round_:
        scale(start, ROUND)
    for start in square:
        scale(start, 1 / ROUND)
    if worst := next((weight for weight in weights if not abs(weight) <= LIMIT), None):
        raise ValueError(f"The prompt weighs a word {worst:.3g} times; brackets may come to weights from -10 to 10.")
    return "".join(plain), weights


def token_weights(plain: str, weights: list[float], offsets: list[tuple[int, int]]) -> list[float]:
    """The weight of each token from the characters (start, end) of `plain` it was read from: that of the first that is no
    space, 1 for a token that no character made."""
    weights_of_tokens = []
    for start, end in offsets:
        at = next((i for i in range(start, min(end, len(plain))) if not plain[i].isspace()), None)
        weights_of_tokens.append(1.0 if at is None else weights[at])
    return weights_of_tokens
