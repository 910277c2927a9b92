"""An evaluation's figures as tables: for the terminal, for Markdown and for LaTeX."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.ranking import Ranking, Statistic, rank
from model.results import LABELS, Evaluation, arrow, direction, mean, number, write_json
from pipeline.images import write_atomically

_LATEX = {letter: f"\\{letter}" for letter in "_&%#${}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
NAMED = 5  # failures of a method that are printed one by one


def say(found: Evaluation, console: Console) -> None:
    """Print an evaluation: a table of each task, then warnings and failures."""
    for task in dict.fromkeys(row.task for row in found.rows):
        console.print(summary(task, found, rank(found.of_task(task))))
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    said: Counter[str] = Counter()
    for method, sample, reason in found.failures:
        said[method] += 1
        if said[method] <= NAMED:
            console.print(f"failed {method} {sample}: {reason}", style="red", markup=False, soft_wrap=True)
    for method, count in said.items():
        if count > NAMED:
            console.print(f"failed {method}: {count - NAMED} more samples", style="red", markup=False)


def summary(task: str, evaluation: Evaluation, ranking: Ranking) -> Table:
    """The means of one task for the terminal: metrics down, methods across, the best in bold."""
    rows = evaluation.of_task(task)
    table = Table(title=f"{task}: {len({row.sample for row in rows})} samples", title_justify="left")
    table.add_column("metric")
    for method in ranking.methods:
        table.add_column(escape(LABELS.get(method, method)), justify="right")
    means = ranking.means()
    for metric in ranking.metrics:
        cells = []
        for method in ranking.methods:
            text = number(metric, means[method][metric])
            cells.append(f"[bold green]{text} *[/]" if ranking.statistics[method][metric].rank == 1 else text)
        table.add_row(f"{metric} {arrow(metric)}", *cells)
    if len(set(ranking.samples.values())) > 1:
        table.add_row("samples", *[str(ranking.samples[method]) for method in ranking.methods])
    if len(ranking.methods) > 1:
        table.add_row("mean rank ↓", *[_rank(ranking.mean_rank[method]) for method in ranking.methods])
    ids = {row.sample for row in rows}
    effects = [value for sample, value in evaluation.effects.items() if sample in ids]
    if effects:
        caption = f"Guidance changes the fused image by {mean(effects):.3f} grey levels on average."
        table.caption = f"* best. {caption}"
    return table


def _rank(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def write_tables(folder: Path, evaluation: Evaluation) -> None:
    """Write statistics.json, table.md and table.tex of every task of an evaluation."""
    rankings = {task: rank(evaluation.of_task(task)) for task in evaluation.tasks if evaluation.of_task(task)}
    write_json(folder / "statistics.json", {task: found.as_json() for task, found in rankings.items()})
    pages = [markdown(task, found, evaluation.profile) for task, found in rankings.items()]
    texts = [latex(task, found, evaluation.profile) for task, found in rankings.items()]
    write_atomically(folder / "table.md", lambda path: path.write_text("\n".join(pages), encoding="utf-8"))
    write_atomically(folder / "table.tex", lambda path: path.write_text("\n".join(texts), encoding="utf-8"))


def markdown(task: str, ranking: Ranking, profile: str) -> str:
    """Two tables: mean ± standard deviation (rank), and differences to the leader with 95 % intervals."""
    head = ["method", "samples", *[f"{metric} {arrow(metric)}" for metric in ranking.metrics], "mean rank ↓"]
    lines = [f"## {task}", "", f"Profile `{profile}`. Mean ± standard deviation (rank); best in bold.", ""]
    lines += _markdown_head(head)
    for method in ranking.methods:
        cells = [LABELS.get(method, method), str(ranking.samples[method])]
        for metric in ranking.metrics:
            figure = ranking.statistics[method][metric]
            text = number(metric, figure.mean)
            if not math.isnan(figure.deviation):
                text += f" ± {number(metric, figure.deviation)}"
            text = f"**{text}**" if figure.rank == 1 else text
            cells.append(text if math.isnan(figure.rank) else f"{text} ({figure.rank:.0f})")
        lines.append(_line([*cells, _rank(ranking.mean_rank[method])]))
    if len(ranking.methods) < 2:
        return "\n".join(lines) + "\n"
    leader = LABELS.get(ranking.leader, ranking.leader)
    lines += ["", f"Difference to {leader}, with its paired 95 % bootstrap interval (* leaves out 0).", ""]
    lines += _markdown_head(["method", *[f"{metric} {arrow(metric)}" for metric in ranking.metrics]])
    for method in ranking.methods[1:]:
        figures = [(metric, ranking.statistics[method][metric]) for metric in ranking.metrics]
        lines.append(_line([LABELS.get(method, method), *[_difference(*figure) for figure in figures]]))
    return "\n".join(lines) + "\n"


def _difference(metric: str, figure: Statistic) -> str:
    if math.isnan(figure.difference):
        return "–"
    decimals = direction(metric).decimals
    text = f"{figure.difference:+.{decimals}f}".replace("inf", "∞")
    if math.isnan(figure.difference_low):
        return text
    interval = f"[{figure.difference_low:+.{decimals}f}, {figure.difference_high:+.{decimals}f}]"
    return f"{text} {interval}{'*' if figure.differs else ''}"


def _markdown_head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), _line(["---", *["---:"] * (len(cells) - 1)])]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def latex(task: str, ranking: Ranking, profile: str) -> str:
    """A booktabs table: mean ± standard deviation, the best bold, the second underlined."""
    columns = "l" + "r" * (len(ranking.metrics) + 1)
    heads = [
        rf"{_escape(metric)} ${chr(92)}{'uparrow' if arrow(metric) == '↑' else 'downarrow'}$"
        for metric in ranking.metrics
    ]
    lines = [
        f"% {task}, profile {profile}; needs the package booktabs",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(["Method", *heads, r"Mean rank $\downarrow$"]) + r" \\",
        r"\midrule",
    ]
    for method in ranking.methods:
        cells = [_escape(LABELS.get(method, method))]
        for metric in ranking.metrics:
            figure = ranking.statistics[method][metric]
            text = number(metric, figure.mean).replace("–", "--").replace("∞", r"$\infty$")
            text = {1.0: rf"\textbf{{{text}}}", 2.0: rf"\underline{{{text}}}"}.get(figure.rank, text)
            spread = "" if math.isnan(figure.deviation) else rf" $\pm$ {number(metric, figure.deviation)}"
            cells.append(text + spread)
        lines.append(" & ".join([*cells, _rank(ranking.mean_rank[method]).replace("–", "--")]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
