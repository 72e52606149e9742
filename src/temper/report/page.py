"""The report of a run: one page that needs nothing but itself, made from the journal alone."""

from importlib.resources import files
from pathlib import Path
from string import Template

from temper.core.journal import Journal
from temper.report.anatomy import anatomy
from temper.report.background import data, environment, model, reproduce
from temper.report.charts import IDENTITY, frontier_chart, library
from temper.report.comparison import comparison
from temper.report.findings import Findings
from temper.report.frontier import frontier
from temper.report.markup import joined, safe
from temper.report.opening import opening
from temper.report.trials import trials
from temper.report.verdict import verdict

SECTIONS = (verdict, comparison, frontier, anatomy, trials, opening, data, model, environment, reproduce)


def write_report(journal: Journal, file: Path) -> None:
    """Write the page of a run, finished or not, into a file."""
    findings = Findings.of(journal)
    content = joined((section(findings) for section in SECTIONS), "\n")
    drawn = f'id="{IDENTITY}"' in content
    chart = f"<script>{library()}</script>\n<script>{frontier_chart(findings)}</script>" if drawn else ""
    place = files("temper.report")
    skeleton = Template((place / "page.html").read_text(encoding="utf-8"))
    page = skeleton.substitute(
        title=safe(f"{findings.name}: temper report"),
        name=safe(findings.name),
        style=(place / "page.css").read_text(encoding="utf-8"),
        content=content,
        chart=chart,
    )
    file.write_text(page, encoding="utf-8")
