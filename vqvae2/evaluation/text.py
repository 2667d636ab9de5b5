"""metrics.json -> the lines and tables that evaluate.py prints and the notebook shows."""

import re
from collections.abc import Iterable, Sequence

from vqvae2.evaluation import report as reports


def headline(report: dict) -> list[tuple[str, str]]:
    """Return the figures of a metrics.json that come first, as (what, value with its unit)."""
    seen = report["seen_in_training"]
    rows = [*(("warning", warning) for warning in report["warnings"]), (
        "images", f"{report['images']} of {report['subjects']} subjects, split {report['split']}; {seen['images']} of "
        f"them and {seen['subjects']} subjects seen in training")]
    for judge, _ in reports.JUDGES:
        if figures := reports.figures_of(report, judge.name):
            rows += judge.rows(figures, report)
    return rows


def tables(report: dict) -> dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Return the table of each judge by the last part of its name, (columns, rows) each; no rows without figures."""
    found = {judge: reports.figures_of(report, judge.name) for judge, _ in reports.JUDGES if judge.columns}
    return {judge.name.rpartition(".")[2]: (judge.columns, judge.table(figures, report) if figures else [])
            for judge, figures in found.items()}


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill(text: str, name: str, content: str) -> str:
    """Return a page with `content` between its lines <!-- name --> and the next <!-- end -->, where it has them."""
    return re.sub(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", lambda found: f"{found[1]}{content}\n{found[2]}",
                  text, flags=re.DOTALL)
