"""Verifiers: from an answer in words to a score in [0, 1] (K2.5 report 4.4.2: rule-based outcome rewards by ability).

The exact maps are not disclosed; the ones below are ours.
"""
import re
from collections import Counter


def normalise(text):
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).strip(" .")


def exact(answer, truth):
    """1 if the same words, else 0."""
    return float(normalise(answer) == normalise(truth))


def caption_f1(answer, truth):
    """F1 over the listed objects, as multisets of names: colour and kind must both be right."""
    got, want = (Counter(part.strip() for part in normalise(text).split(",") if part.strip()) for text in (answer, truth))
    return 2 * sum((got & want).values()) / max(1, sum(got.values()) + sum(want.values()))


def count(answer, truth):
    """1 - |difference| / truth, not below 0: counting by difference, as in K2.5 4.4.2 (the map is ours)."""
    if not re.fullmatch(r"\d{1,3}", normalise(answer)):
        return 0.0
    return max(0.0, 1 - abs(int(normalise(answer)) - int(truth)) / max(1, int(truth)))


def box(answer, truth):
    """Intersection over union of two boxes `x0 y0 x1 y1` in 0..99 (both ends inside)."""
    numbers = [int(number) for number in re.findall(r"\d+", answer)]
    if len(numbers) != 4 or numbers[0] > numbers[2] or numbers[1] > numbers[3] or max(numbers) > 99:
        return 0.0
    want = [int(number) for number in truth.split()]
    area = lambda b: (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    sides = [min(numbers[i + 2], want[i + 2]) - max(numbers[i], want[i]) + 1 for i in (0, 1)]
    overlap = max(0, sides[0]) * max(0, sides[1])
    return overlap / (area(numbers) + area(want) - overlap)


def edit_distance(a, b):
    """Levenshtein distance of two strings."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def ocr(answer, truth):
    """1 - edit distance / length, not below 0."""
    return max(0.0, 1 - edit_distance(normalise(answer), normalise(truth)) / max(1, len(truth)))


VERIFIERS = {"exact": exact, "caption": caption_f1, "count": count, "box": box, "ocr": ocr}


def score(problem, answer):
    """Reward of an answer to a problem, in [0, 1]."""
    return VERIFIERS[problem.verifier](answer, problem.answer)


def correct(problem, answer):
    """True where the answer is right: the same words; for boxes an IoU of at least 0.5; for captions every object."""
    return score(problem, answer) >= (0.5 if problem.verifier == "box" else 1.0)
