"""Where the few labels of a chart stand, so that they cover no mark, no line and not one another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Place = tuple[float, float]
SCREENS = ((290.0, 270.0), (940.0, 380.0))
"""Width and height of the plotting area on a phone and on a desktop, in pixels."""
OFFSETS = tuple((dx, dy) for dy in (-44, 44, -30, 30, -66, 66, -88, 88, 0) for dx in (0, -56, 56) if (dx, dy) != (0, 0))
"""Where a label may stand from its mark, in pixels to the right and down; the first are liked best."""
LETTER, HALF_LINE, MARK = 4.2, 11.0, 9.0
OUTSIDE, OVER_LABEL, OVER_MARK, NEARER_MARK, OVER_BAR, OVER_LINE = 100.0, 60.0, 20.0, 8.0, 2.0, 3.0


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A mark with the ends of its bars, as shares of the plotting area from the left and from the top."""

    at: Place
    left: float
    right: float
    top: float
    bottom: float


def placed(wanted: Sequence[tuple[int, str]], marks: Sequence[Mark], lines: Sequence[Place]) -> list[Place]:
    """An offset for each wanted label (index of its mark, text); `lines` are places along the lines to keep clear."""
    taken: list[tuple[Place, Place, str]] = []
    for index, text in wanted:
        at = marks[index].at
        costs = [
            (sum(_cost(screen, at, offset, text, marks, lines, taken) for screen in SCREENS), rank, offset)
            for rank, offset in enumerate(OFFSETS)
        ]
        taken.append((at, min(costs)[2], text))
    return [offset for _, offset, _ in taken]


def _cost(
    screen: Place,
    at: Place,
    offset: Place,
    text: str,
    marks: Sequence[Mark],
    lines: Sequence[Place],
    taken: Sequence[tuple[Place, Place, str]],
) -> float:
    width, height = screen
    x, y = at[0] * width + offset[0], at[1] * height + offset[1]
    reach, half = LETTER * len(text) + 6, HALF_LINE

    def covers(place: Place, extra: float = 0.0) -> bool:
        return abs(place[0] * width - x) < reach + extra and abs(place[1] * height - y) < half + extra

    def distance(place: Place) -> float:
        return math.hypot(max(abs(place[0] * width - x) - reach, 0.0), max(abs(place[1] * height - y) - half, 0.0))

    def crossed(place: Place) -> bool:
        """Whether the line from mark to label runs through a place."""
        across, down = (place[0] - at[0]) * width, (place[1] - at[1]) * height
        length = math.hypot(*offset)
        along = (across * offset[0] + down * offset[1]) / length
        return 0 < along < length and abs(across * offset[1] - down * offset[0]) / length < MARK

    cost = 0.0 if reach <= x <= width - reach and half <= y <= height - half else OUTSIDE
    for mark in marks:
        cost += OVER_MARK * (covers(mark.at, MARK) or crossed(mark.at))
        cost += NEARER_MARK * (mark.at != at and distance(mark.at) < distance(at))
        upright = (
            abs(mark.at[0] * width - x) < reach and mark.top * height < y + half and mark.bottom * height > y - half
        )
        level = abs(mark.at[1] * height - y) < half and mark.left * width < x + reach and mark.right * width > x - reach
        cost += OVER_BAR * (upright + level)
    cost += OVER_LINE * any(map(covers, lines))
    for other, (dx, dy), words in taken:
        near = abs(other[0] * width + dx - x) < reach + LETTER * len(words) + 6
        cost += OVER_LABEL * (near and abs(other[1] * height + dy - y) < 2 * half)
    return cost
