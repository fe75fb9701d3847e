"""The table and the picture of a benchmark."""

import html
from collections.abc import Mapping, Sequence

from bench.accounts import WithAccounts
from bench.measure import Figures
from bench.watching import MetricsCost, ProbeCost

MEGABYTE = 1_000_000


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are aligned. All columns but the first are numbers."""
    widths = [max(len(line[i]) for line in (header, *lines)) for i in range(len(header))]

    def text(cells: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        padded = [cells[0].ljust(widths[0]), *numbers]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([text(header), text(rule), *map(text, lines)])


ROW_HEADER = (
    *("", "at a time", "per second", "p50 ms", "p99 ms", "CPU ms", "peak MB"),
    *("file per second", "empty app per second", "ratio", "goal", "generator per second"),
)


def rows_table(figures: Sequence[Figures]) -> str:
    """Return the table of the rows."""

    def rate(name: str, each: Figures) -> str:
        floor = each.floors.get(name) or (each.floors.get("parts") if name == "file" else None)
        return number(floor.per_second) if floor else ""

    return table(
        ROW_HEADER,
        [
            (
                each.name,
                str(each.connections),
                number(each.per_second),
                number(each.p50_ms),
                number(each.p99_ms),
                number(each.cpu_ms),
                number(each.peak_bytes / MEGABYTE),
                rate("file", each),
                rate("empty", each),
                f"{each.ratio:.2f}" if each.ratio is not None else "",
                each.goal_is,
                number(each.generator_per_second),
            )
            for each in figures
        ],
    )


def accounts_table(measured: Sequence[WithAccounts]) -> str:
    """Return the table of the files with many accounts."""
    names = list(measured[0].p50_ms)
    return table(
        (
            "accounts",
            "file MB",
            "start ms",
            "cold start ms",
            "cold start reads MB",
            *(f"{name}, p50 ms" for name in names),
        ),
        [
            (
                f"{each.accounts:,}",
                number(each.file_bytes / MEGABYTE),
                number(each.start_ms),
                "not run" if each.cold_start_ms is None else number(each.cold_start_ms),
                "not run" if each.cold_read_bytes is None else number(each.cold_read_bytes / MEGABYTE),
                *(number(each.p50_ms[name]) for name in names),
            )
            for each in measured
        ],
    )


def metrics_table(cost: MetricsCost) -> str:
    """Return the table of what the metrics cost."""

    lines = []
    for name, (without, beside, ratio) in cost.work.items():
        rates = number(without.per_second), number(beside.per_second), f"{ratio.per_second:.2f}"
        lines.append((name, "per second", *rates))
        lines.append((name, "CPU ms", number(without.cpu_ms), number(beside.cpu_ms), f"{ratio.cpu_ms:.2f}"))
    for name, (least, most) in (("memory after the start", cost.start_bytes), ("most memory", cost.peak_bytes)):
        lines.append((name, "MB", number(least / MEGABYTE), number(most / MEGABYTE), f"{most / least:.2f}"))
    return table(("", "", "without", "with", "ratio"), lines)


def probes_table(probes: Sequence[ProbeCost]) -> str:
    """Return the table of what /health takes."""
    return table(
        ("/health while", "probes", "p50 ms", "p99 ms", "CPU ms"),
        [
            (each.state, f"{each.count:,}", number(each.p50_ms), number(each.p99_ms), number(each.cpu_ms))
            for each in probes
        ],
    )


def number(value: float) -> str:
    """Return a number with about three digits."""
    digits = 2 if value < 1 else 1 if value < 20 else 0
    return f"{value:,.{digits}f}"


# ---- The picture -------------------------------------------------------------------------------------------

BAR, GAP, LABEL, WIDTH = 14, 12, 150, 420
COLOURS = {"server": "#2f6f9f", "floor": "#c9d3da"}


def picture(title: str, figures: Sequence[Figures]) -> str:
    """Return an SVG: for each row with a ratio of rates, the server's bar on its floor's, and a mark at the goal."""
    shown = [each for each in figures if each.ratio is not None and not each.goal_is.startswith("at most")]
    height = 46 + len(shown) * (BAR + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LABEL + WIDTH + 190} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="8" y="20" font-weight="bold">{html.escape(title)}</text>',
    ]
    for i, each in enumerate(shown):
        assert each.ratio is not None
        y = 36 + i * (BAR + GAP)
        parts.append(f'<text x="8" y="{y + 11}">{html.escape(each.name)}</text>')
        parts.append(bar(y, 1.0, "floor"))
        parts.append(bar(y, min(each.ratio, 1.0), "server"))
        if each.goal is not None:
            x = LABEL + each.goal * WIDTH
            parts.append(f'<path d="M{x:.1f} {y - 3}v{BAR + 6}" stroke="#b3412e" stroke-width="2"/>')
        note = f"{each.ratio:.2f} of the floor, {number(each.per_second)} a second"
        parts.append(f'<text x="{LABEL + WIDTH + 8}" y="{y + 11}">{note}</text>')
    return "\n".join([*parts, "</svg>", ""])


def bar(y: int, part: float, what: str) -> str:
    return f'<rect x="{LABEL}" y="{y}" width="{part * WIDTH:.1f}" height="{BAR}" fill="{COLOURS[what]}"/>'


def curves(title: str, lines: Mapping[str, Sequence[float]], mark: float, most: float) -> str:
    """Return an SVG with one small curve for each name, from 0 to `most`, and a line at `mark`."""
    columns, width, height = 3, 250, 90
    rows = -(-len(lines) // columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * width + 16} {rows * height + 36}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="8" y="18" font-weight="bold" font-size="12">{html.escape(title)}</text>',
    ]
    for i, (name, samples) in enumerate(lines.items()):
        x, y = 8 + i % columns * width, 30 + i // columns * height
        inner = (width - 20, height - 32)
        step = max(1, len(samples) // inner[0])
        shown = samples[::step]
        points = " ".join(
            f"{x + j * inner[0] / max(1, len(shown) - 1):.1f},{y + 14 + inner[1] * (1 - min(1, value / most)):.1f}"
            for j, value in enumerate(shown)
        )
        at = y + 14 + inner[1] * (1 - mark / most)
        label = f"{html.escape(name)}: at most {number(max(samples) / MEGABYTE)} MB"
        parts.append(f'<text x="{x}" y="{y + 10}">{label}</text>')
        parts.append(f'<path d="M{x} {at:.1f}h{inner[0]}" stroke="#b3412e" stroke-dasharray="3"/>')
        parts.append(f'<path d="M{x} {y + 14}v{inner[1]}h{inner[0]}" fill="none" stroke="#888"/>')
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS["server"]}"/>')
    return "\n".join([*parts, "</svg>", ""])
