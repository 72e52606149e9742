"""The documentation says what is so: links lead somewhere, options and names exist, Python compiles."""

import re
from pathlib import Path

import pytest
import typer

import temper
from temper.cli import _app
from temper.core import catalog
from temper.core.runtime import Runtime
from temper.core.search import Search
from temper.core.solver import Solver
from temper.core.technique import Technique

ROOT = Path(__file__).parents[3]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
KINDS = {"technique": Technique, "runtime": Runtime, "search": Search, "solver": Solver}
EXAMPLES = {"low_rank.svd", "onnx_reference"}
"""The plugs that the pages on adding one make up."""


@pytest.fixture(params=PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def page(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


def options() -> dict[str, set[str]]:
    """The options of each command."""
    group = typer.main.get_command(_app())
    return {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(page: Path, heading: str) -> str:
    """What stands under a heading, up to the next one."""
    _, _, rest = page.read_text(encoding="utf-8").partition(f"{heading}\n")
    return re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0]


def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


def test_commands_and_options_exist(page: Path) -> None:
    known = options()
    for line in re.findall(r"\btemper ((?:[a-z]+)(?: [^`\n|]*)?)", code(page)):
        command, *words = line.split()
        assert command in known, f"temper {command} is no command"
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= known[command] | {"--help"}, f"temper {line}"


def test_python_blocks_compile(page: Path) -> None:
    for number, block in enumerate(blocks(page, "python")):
        compile(block, f"{page.name}, block {number}", "exec")


def test_names_of_plugs_exist(page: Path) -> None:
    names = {name for kind in KINDS.values() for name in catalog.names(kind)} | EXAMPLES
    families = {name.partition(".")[0] for name in catalog.names(Technique)}
    text = page.read_text(encoding="utf-8")
    mentioned = re.findall(rf"`((?:{'|'.join(families)})\.\w+)`", text)
    mentioned += re.findall(r"\b(?:technique|runtime|search|solver) \| `([\w.]+)`", text)
    assert set(mentioned) <= names


def test_reference_lists_every_option() -> None:
    for command, known in options().items():
        headings = re.findall(rf"^### temper {command}\b.*$", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)
        assert len(headings) == 1, f"temper {command} is not in the reference"
        listed = re.findall(r"^\| `(--[\w-]+)`", section(ROOT / "docs/reference.md", headings[0]), re.MULTILINE)
        assert set(listed) == known, f"temper {command}"


def test_reference_lists_the_whole_catalog() -> None:
    text = section(ROOT / "docs/reference.md", "## The catalog")
    for kind, plug in KINDS.items():
        listed = re.findall(rf"^\| {kind} \| `([\w.]+)`", text, re.MULTILINE)
        assert listed == list(catalog.names(plug))


def test_reference_lists_every_public_name() -> None:
    text = section(ROOT / "docs/reference.md", "## Python")
    assert set(re.findall(r"^\| `(\w+)", text, re.MULTILINE)) == set(temper.__all__)


def test_readme_has_a_place_for_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- results -->") == text.count("<!-- /results -->") == 1


def blocks(page: Path, language: str = r"\w*") -> list[str]:
    """The fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def code(page: Path) -> str:
    """All that is set as code: fenced shell blocks and single words and lines between backticks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", text)
    headings = re.findall(r"^### (.+)$", text, re.MULTILINE)
    lines = [line.partition(" # ")[0] for block in blocks(page, "sh") for line in block.splitlines()]
    return "\n".join(each for each in (*inline, *headings, *lines) if each.startswith("temper "))
