"""Write the whole report of an experiment: table, figures, page, and last of all the report's own manifest."""

from __future__ import annotations

from msd.plan import Plan
from msd.report import breakdown, broken_down, cost, figures, page, read, summary, table
from msd.report.claims_page import lines_of
from msd.report.origins import origins
from msd.report.sections import Content
from msd.store import Manifest, write_json, write_text


def build_report(plan: Plan, configuration: str = "") -> Manifest:
    """Make the tables (csv, md), metrics.json, figures/*.png, report.html, then ``plan.report``.

    Args:
        plan: of the experiment.
        configuration: the options that chose it on the command line; the page's commands repeat them.

    Raises:
        MissingFileError: something of the experiment is not made yet.
        DamagedFileError: a result is stale or damaged, or the rows were measured differently.
    """
    report = read.read(plan)
    root, folder = plan.root, plan.root / "figures"
    broken, costs = breakdown.read(plan, report), cost.read(plan, report)
    drawn = figures.draw_all(report, folder) + breakdown.draw_all(broken, folder)
    content = Content(report, drawn, origins(report, configuration), broken, costs, lines_of(plan))
    for old in set(folder.glob("*.png")) - {figure.path for figure in drawn}:
        old.unlink()  # of a variant that is no more: figures/*.png is what this report shows
    texts = {
        "ablation.csv": table.csv(report.numbers),
        "ablation.md": f"# Ablation table of `{plan.experiment.experiment}`\n\n{table.explained(report.numbers)}\n",
        "breakdown.csv": broken_down.csv(broken),
        "nearest.csv": broken_down.nearest_csv(broken),
        "cost.csv": cost.csv(costs),
        "report.html": page.render(content),
    }
    for name, text in texts.items():
        write_text(root / name, text)
    write_json(root / "metrics.json", table.metrics(report.numbers))
    names = [*texts, "metrics.json", *(f"figures/{figure.path.name}" for figure in drawn)]
    return Manifest.write(
        plan.report,
        kind="report",
        settings={"experiment": plan.experiment.experiment, "variants": list(plan.variants)},
        files={name: root / name for name in names},
        inputs={name: manifest.path for name, manifest in report.manifests.items()},
        results={
            "numbers": report.numbers,
            "summary": summary.paragraph(report.numbers),
            "notes": table.notes(report.numbers),
        },
    )
