"""HTML that is safe by construction: whatever is not markup already is escaped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from temper.report.words import MISSING

VOID = ("br", "meta", "col")


class Html(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table: its heading, and whether it holds numbers, which are aligned to the right."""

    title: str
    numeric: bool = False


def tag(name: str, *children: str | None, **attributes: str | None) -> Html:
    """An element; children that are plain text are escaped, None is left out, `class_` stands for `class`."""
    given = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    opening = f"<{name}{''.join(given)}>"
    return Html(opening if name in VOID else f"{opening}{joined(children)}</{name}>")


def joined(parts: Iterable[str | None], between: str = "") -> Html:
    """The parts one behind the other, each escaped unless it is markup."""
    return Html(safe(between).join(safe(part) for part in parts if part is not None))


def safe(text: str) -> Html:
    """The text as markup."""
    return text if isinstance(text, Html) else Html(escape(text))


def section(identity: str, title: str, *children: str | None) -> Html:
    """A section of the page under a heading of the second level."""
    heading = tag("h2", title, id=identity)
    return tag("section", heading, *children, aria_labelledby=identity)


def badge(verdict: str) -> Html:
    """A verdict as a small label whose color repeats what its word says."""
    return tag("span", verdict, class_=f"badge badge-{verdict.lower().replace(' ', '-')}")


def value(main: str, note: str | None = None) -> Html:
    """A number with what belongs to it, smaller, underneath."""
    return tag("span", tag("span", main, class_="main"), note and tag("small", note), class_="value")


def folded(text: str, longest: int = 180) -> Html:
    """A text that opens on demand where it is long."""
    if len(text) <= longest:
        return tag("p", text, class_="reason")
    start = text[:longest].rsplit(" ", 1)[0][:longest]
    return tag("details", tag("summary", f"{start} …"), tag("p", text), class_="reason")


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    *,
    classes: str,
    marks: Sequence[str] = (),
) -> Html:
    """A table in a box that scrolls; the first cell of a row is its heading. Of the class `cards`, it turns into
    cards on a narrow screen.

    The roles are spelled out because a table that is laid out as blocks would lose them. `marks` are the classes of
    the rows.
    """
    kinds = ["number" if column.numeric else "text" for column in columns]
    head = tag(
        "tr",
        *(
            tag("th", column.title, scope="col", role="columnheader", class_=kind)
            for column, kind in zip(columns, kinds)
        ),
        role="row",
    )
    body = []
    for index, row in enumerate(rows):
        first, *rest = row
        cells = [tag("th", first, scope="row", role="rowheader", class_=kinds[0])]
        cells += [
            tag("td", tag("div", cell), role="cell", class_=_kind(cell, kind), data_label=column.title)
            for cell, column, kind in zip(rest, columns[1:], kinds[1:])
        ]
        body.append(tag("tr", *cells, role="row", class_=marks[index] if marks else None))
    content = (
        tag("caption", caption),
        tag("thead", head, role="rowgroup"),
        tag("tbody", *body, role="rowgroup"),
    )
    inner = tag("table", *content, role="table", class_=classes)
    return tag("div", inner, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _kind(cell: str, kind: str) -> str:
    """The class of a cell; one that holds nothing to read is left out of a card."""
    return f"{kind} empty" if cell in ("", MISSING) else kind


def definitions(pairs: Iterable[tuple[str, str | None]]) -> Html:
    """A list of names and what they stand for; what is None is left out."""
    entries = (tag("div", tag("dt", name), tag("dd", meaning)) for name, meaning in pairs if meaning is not None)
    return tag("dl", *entries, class_="definitions")
