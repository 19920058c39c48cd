"""The dashboard of a W&B project: `python experiments/wandb/dashboard.py ENTITY PROJECT` makes it there.

Needs pip install 'fsr-lab[dashboard]' and an account. README.md beside this file shows what it contains.
"""

import sys

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as ws

TEST = ("fgsm", "pgd20", "pgd100", "cw30", "ensemble")
STEP = "trainer/global_step"
NAME = "fsr-lab"


def line(title: str, *metrics: str, pattern: str | None = None) -> panels.LinePlot:
    """Return curves over the optimiser's steps, of named metrics or of all that a pattern fits."""
    return panels.LinePlot(title=title, x=STEP, y=list(metrics), metric_regex=pattern)


def dashboard(entity: str, project: str) -> ws.Workspace:
    """Return the workspace; nothing is sent anywhere.

    Args:
        entity: the user or team.
        project: `logger.wandb.project`.
    """
    robustness = [
        line("Robust accuracy, validation", "val/robust_acc", "val/robust_acc_best"),
        line("Clean accuracy, validation", "val/acc"),
        line("Robust overfitting: training beside validation", "train/acc", "val/robust_acc"),
        panels.BarPlot(title="Robust accuracy, test, last checkpoint", metrics=[f"test/{n}/robust_acc" for n in TEST]),
        panels.BarPlot(title="Robust accuracy, test, best", metrics=[f"test/best/{n}/robust_acc" for n in TEST]),
        panels.ScatterPlot(title="Clean against robust accuracy", x="test/acc", y="test/ensemble/robust_acc"),
        panels.WeavePanelSummaryTable(table_name="test/robust_accuracies"),
    ]
    training = [
        line("Loss", "train/loss"),
        line("Loss terms of the strategy", pattern="train/(ce|bce|kl|pairing|s2o)"),
        line("Separation loss", pattern="train/.*sep"),
        line("Recalibration loss", pattern="train/.*rec"),
    ]
    images = [
        panels.MediaBrowser(title="Clean images", media_keys=["samples/clean"], num_columns=4),
        panels.MediaBrowser(title="Adversarial images", media_keys=["samples/adversarial"], num_columns=4),
    ]
    masks = [line("Masks on validation images, by insertion point", pattern="mask/.*")]
    search = [
        panels.ParallelCoordinatesPlot(
            title="What a sweep has found",
            columns=[
                panels.ParallelCoordinatesPlotColumn(panels.Config("defense.module.tau")),
                panels.ParallelCoordinatesPlotColumn(panels.Config("defense.module.lambda_sep")),
                panels.ParallelCoordinatesPlotColumn(panels.Config("defense.module.lambda_rec")),
                panels.ParallelCoordinatesPlotColumn("val/robust_acc_best"),
            ],
        ),
        panels.ParameterImportancePlot(with_respect_to="val/robust_acc_best"),
    ]
    sections = {"Robustness": robustness, "Training": training, "Masks": masks, "Images": images, "Search": search}
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(name=name, panels=group, is_open=True) for name, group in sections.items()],
    )


if __name__ == "__main__":
    print(dashboard(*sys.argv[1:]).save().url)
