"""How benchmark results are written: what, when, where, by which command, then a table."""

from collections.abc import Sequence
from datetime import date

from temper.hardware.detect import this_host


def header(title: str, command: str) -> str:
    host = this_host()
    versions = ", ".join(f"{name} {version}" for name, version in host.versions.items())
    return (
        f"# {title}\n\n{date.today().isoformat()}, {host.processor}, {host.cores} cores "
        f"({', '.join(host.features)}), {host.memory_bytes / 2**30:.0f} GiB; {versions}.\n\n    {command}"
    )


def markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
