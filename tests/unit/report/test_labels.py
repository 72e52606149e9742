from itertools import combinations

from temper.report.labels import HALF_LINE, LETTER, SCREENS, Mark, placed


def mark(x: float, y: float, reach: float = 0.1) -> Mark:
    return Mark(at=(x, y), left=x - 0.02, right=x + 0.02, top=y - reach, bottom=y + reach)


def test_labels_of_neighbours_never_meet() -> None:
    marks = [mark(0.5, 0.5), mark(0.52, 0.51), mark(0.48, 0.55)]
    wanted = [(0, "baseline"), (1, "ships")]
    offsets = placed(wanted, marks, [])
    for width, height in SCREENS:
        places = [
            (marks[index].at[0] * width + dx, marks[index].at[1] * height + dy, LETTER * len(text) + 6)
            for (index, text), (dx, dy) in zip(wanted, offsets)
        ]
        for (x, y, reach), (other_x, other_y, other_reach) in combinations(places, 2):
            assert abs(x - other_x) >= reach + other_reach or abs(y - other_y) >= 2 * HALF_LINE


def test_a_label_stays_inside_and_off_its_neighbour() -> None:
    marks = [mark(0.12, 0.08), mark(0.14, 0.3)]
    ((dx, dy),) = placed([(0, "ships")], marks, [])
    for width, height in SCREENS:
        assert marks[0].at[0] * width + dx - LETTER * 5 > 0
        assert marks[0].at[1] * height + dy > 0
    assert dx >= 0
