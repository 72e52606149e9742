"""The table of benchmarks/breadth.py and its summary in the README, made from the files of the rows."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peers import COLUMNS
from records import read_json
from table import markdown

HERE = Path(__file__).resolve().parent
RESULTS, PAGE, README = HERE / "results" / "breadth", HERE / "breadth.md", HERE.parent / "README.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
FLOATS = ("torch eager", "torch.compile", "ONNX Runtime fp32", "OpenVINO")
WITHIN = 1.05
"""temper counts as not slower up to this ratio of its time to that of the best peer that keeps the quality."""

Entry = Mapping[str, Any]

INTRODUCTION = """\
# temper against every other way to run the same models

    python benchmarks/breadth.py

Numbers are times relative to temper's artifact: 1.30 takes 30 % longer, 0.90 is faster. One example a call. All
contestants of a line ran in the same interleaved rounds; details, with intervals, stand below. Where a library offers
several ways, the fastest that keeps the quality is shown. ~~Struck out~~ is what loses more than one point of the
metric against the original model on the same examples (1 % of perplexity; where there are no labels, one point of
agreement with the original or, with random weights, of cosine). The last columns compare temper with the best float or
int8 peer that keeps the quality: "faster" where the whole 95 % interval of the ratio is under 1, "level" up to 1.05.

The rows were made on machines of two kinds, which prefer different things: where the processor has matrix units (AMX),
ResNet-56 is faster in bfloat16 than in 8 bits, and its best artifact is the unchanged model.
"""

SUMMARY = """\
Times against temper's artifact, batch 1, one thread: above 1 is slower than temper. Each peer stands with the fastest
of its variants that loses at most one point on the same examples (1 % of perplexity); struck out is what loses more.
The last two columns turn it around: temper's time over that of the best peer, float or int8, with one thread and two.
That temper loses no more than a point is proven for each of its artifacts, but where it says otherwise. The two columns
may come from different machines; the page says which.
"""
MORE = "All contestants, intervals and versions: [benchmarks/breadth.md](benchmarks/breadth.md)."


def page(folder: Path, order: Sequence[str]) -> str:
    """The whole page: one table, and below it a section a row, in this order of names."""
    found = [read_json(folder / f"{name}.json") for name in order if (folder / f"{name}.json").exists()]
    lines = [_line(row, threads, entry) for row in found for threads, entry in row["threads"].items()]
    judged = ("best honest peer", "temper / best peer", "verdict")
    names = ("model", "threads", "machine", "temper, ms", *COLUMNS, *judged)
    sections = [section for row in found for section in _sections(row)]
    return "\n\n".join([INTRODUCTION.rstrip(), markdown(names, lines), *sections]) + "\n"


def with_summary(readme: str, folder: Path, order: Sequence[str]) -> str:
    """The README with a short table of these rows between its marks."""
    found = [read_json(folder / f"{name}.json") for name in order if (folder / f"{name}.json").exists()]
    names = ("model", "best float", "ONNX Runtime int8", "nncf.quantize", "torchao PT2E", "temper's drop")
    lines = [_summary_line(row) for row in found if "1" in row["threads"]]
    table = markdown((*names, "temper / best", "with 2 threads"), lines)
    before, begun, rest = readme.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"the README has no place for results: it needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{SUMMARY}\n{table}\n\n{MORE}\n\n{END}{after}"


def _summary_line(row: Entry) -> list[str]:
    entry = row["threads"]["1"]
    groups = (FLOATS, ("ONNX Runtime int8",), ("OpenVINO + nncf.quantize",), ("torchao PT2E",))
    cells = [_cell([each for each in entry["contestants"] if each["column"] in group]) for group in groups]
    temper = _temper(entry)
    drop = "fails" if "failure" in temper else f"{temper['drop']:+.4f} of {row['metric']}"
    drop += "" if entry["verdict"] == "ACCEPT" else " (not proven)"
    ratios = [_ratio(row["threads"][threads]) if threads in row["threads"] else "–" for threads in ("1", "2")]
    return [row["title"], *cells, drop, *ratios]


def _ratio(entry: Entry) -> str:
    """temper's time over that of the best honest peer, and what that means."""
    _, ratio, word = verdict(entry)
    return f"{ratio.partition(' ')[0]} {word}".strip()


def verdict(entry: Entry) -> tuple[str, str, str]:
    """The best honest peer, the ratio of temper's time to its, and what that means."""
    honest = [each for each in entry["contestants"] if each["column"] in COLUMNS and each.get("kept")]
    temper = _temper(entry)
    if "failure" in temper or not honest:
        return "none", "", "no comparison"
    best = min(honest, key=lambda each: each["ratio"][0])
    low, middle, high = (1 / best["ratio"][index] for index in (2, 0, 1))
    word = "faster" if high < 1 else "level" if middle <= WITHIN else "slower"
    if not temper["kept"]:
        word = "misses the quality"
    return best["name"], f"{middle:.3f} ({low:.3f} to {high:.3f})", word


def _line(row: Entry, threads: str, entry: Entry) -> list[str]:
    temper = _temper(entry)
    milliseconds = "fails" if "failure" in temper else f"{temper['p50_s'] * 1e3:.3f}"
    cells = [_cell([each for each in entry["contestants"] if each["column"] == column]) for column in COLUMNS]
    return [row["title"], threads, machine(entry), milliseconds, *cells, *verdict(entry)]


def machine(entry: Entry) -> str:
    """The maker of the processor, and the widest of its units for integers."""
    host = entry["environment"]
    units = (("amx_int8", "AMX"), ("avx512_vnni", "VNNI"), ("i8mm", "I8MM"), ("avx2", "AVX2"))
    widest = next((unit for feature, unit in units if feature in host["features"]), "")
    return f"{host['processor'].split()[0].partition('(')[0]} {widest}".strip()


def _cell(variants: Sequence[Entry]) -> str:
    """The fastest variant that keeps the quality, else the fastest one struck out."""
    run = [each for each in variants if "failure" not in each]
    if not run:
        return "fails" if variants else "–"
    kept = [each for each in run if each["kept"]]
    best = min(kept or run, key=lambda each: each["ratio"][0])
    return f"{best['ratio'][0]:.2f}" if kept else f"~~{best['ratio'][0]:.2f}~~"


def _temper(entry: Entry) -> Entry:
    return next(each for each in entry["contestants"] if each["column"] == "temper")


def _sections(row: Entry) -> Iterator[str]:
    for threads, entry in row["threads"].items():
        host = entry["environment"]
        versions = ", ".join(f"{name} {number}" for name, number in entry["versions"].items())
        yield f"## {row['title']}, {threads} thread{'s' if threads != '1' else ''}"
        processes = entry.get("processes", 1)  # entries of before each contestant was loaded several times
        yield (
            f"{entry['date']}, {host['processor']}, {host['cores']} cores; {versions}. {row['examples']} proof "
            f"examples, {entry['rounds']} rounds, {processes} process{'es' if processes > 1 else ''} a contestant, a "
            f"search of {entry['budget']}. temper's own proof: **{entry['verdict']}**, {entry['reason']}."
        )
        yield markdown(
            ("contestant", "time against temper", "p50, ms", row["metric"], "drop (95 % bound)"),
            [_detail(each) for each in entry["contestants"]],
        )


def _detail(each: Entry) -> list[str]:
    name = f"temper: {each['variant']}" if each["column"] == "temper" else each["name"]
    if "failure" in each:
        return [name, "fails", "", "", each["failure"].replace("|", "/")]
    ratio, low, high = each["ratio"]
    shown = name if each["kept"] else f"~~{name}~~"
    return [
        shown,
        f"{ratio:.3f} ({low:.3f} to {high:.3f})",
        f"{each['p50_s'] * 1e3:.3f}",
        f"{each['score']:.4f}",
        f"{each['drop']:+.4f} (under {each['drop_bound']:+.4f})",
    ]
