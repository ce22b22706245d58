"""The verbs that judge: evaluate, train-teacher, classify, report, rank."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from dap.base.parsing import counted
from dap.cli.flags import (
    Changes,
    Classes,
    DryRun,
    EngineFlags,
    JudgingFlags,
    MachineFlags,
    MaybePositive,
    Numbers,
    OutputFlags,
    Places,
    Positive,
    Seed,
    Sets,
    Told,
    Track,
    assignments,
    engine_of,
    judging_of,
    machine_of,
    output_of,
    watcher_of,
)
from dap.cli.results import forecast, shown, shown_of

BadFraction = Annotated[
    float | None,
    Parameter(
        metavar="FRACTION",
        help="The largest fraction of the real images that may be broken. Default: that of the set's recipe, else 0.01.",
    ),
]

Full = Annotated[
    str | None,
    Parameter(
        metavar="FRACTION|FILE",
        help="Accuracy of training on all real images: a fraction in [0, 1], or a file of dap train-teacher.",
    ),
]
MOST_LACKING = 10
"""How many sentences on missing scores are shown."""


def evaluate(
    sets: Sets,
    /,
    *,
    data: str | None = None,
    classes: Classes = None,
    max_bad_fraction: BadFraction = None,
    split: Places = None,
    out: Path | None = None,
    dry_run: DryRun = False,
    judged: JudgingFlags | None = None,
    track: Track = None,
    engine: EngineFlags | None = None,
    machine: MachineFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Judge sets.

    Args:
        sets: Distilled sets, or any folders of class folders.
        data: Real images to test on. Default: those that the set was made of.
        classes: For a folder that others made: the class folders in label order, or a subset of ImageNet.
        split: Where the splits lie, where this is not plain: train=FOLDER,test=FOLDER. test=val tests on val.
        out: Folder of the report and of the results of sets that lie elsewhere. Default: the first set's own, or
            NAME-judged for a folder that others made.
    """
    from dap.verbs.placing import beside_here

    told = {"judging": judging_of(judged), "machine": machine_of(machine), "watcher": watcher_of(output)}
    told |= {"data": data, "classes": classes, "max_bad_fraction": max_bad_fraction, "split": split}
    own = (sets[0] / "classes.json").exists() or not sets[0].is_dir()
    out = out or (sets[0] if own else beside_here(sets[0]))
    if dry_run:
        from dap.verbs.planning.grids import planned_judging

        return forecast(planned_judging(sets, out=out, **told), out)
    from dap.verbs.evaluate import evaluate as run
    from dap.verbs.report import check_tracking

    check_tracking(track)
    return shown_of(lambda: run(sets, out=out, engine=engine_of(engine), **told), track, output_of(output))


def train_teacher(
    *,
    data: str,
    out: Path,
    classes: Classes = None,
    max_bad_fraction: BadFraction = None,
    split: Places = None,
    network: str | None = None,
    protocol: str = "reference",
    epochs: MaybePositive = None,
    changes: Changes = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    machine: MachineFlags | None = None,
    engine: EngineFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Train a classifier.

    Args:
        data: The real images, as in a recipe: fashion-mnist, or a folder.
        out: File to write, such as teacher.safetensors.
        classes: The classes to use, in label order, or a subset of ImageNet. Default: all.
        split: Where the splits lie, where this is not plain: train=FOLDER,test=FOLDER. test=val tests on val.
        network: Instead of the protocol's own network: resnet18, convnet3, file.py:build.
        protocol: The name of a shipped protocol, or a YAML file.
        epochs: Training epochs instead of the protocol's own.
        seed: The seed of the training.
    """
    asked = {"classes": classes, "max_bad_fraction": max_bad_fraction, "split": split, "network": network}
    asked |= {"protocol": protocol, "epochs": epochs, "changes": assignments(changes or [], "--set", "FIELD")}
    told = {"machine": machine_of(machine), "watcher": watcher_of(output)}
    if dry_run:
        from dap.verbs.planning.networks import planned_teacher

        return forecast(planned_teacher(data, out, **asked, **told), out.parent)
    from dap.verbs.training.teacher import train_teacher as run

    trial = run(data, out, **asked, **told, seed=seed, engine=engine_of(engine))
    return Told(
        f"{out}: {trial.network}, {trial.last:.1%} of {counted(trial.n_test, 'test image')}, {trial.seconds:.0f} s",
        {"teacher": out, "network": trial.network, "accuracy": trial.last, "n_test": trial.n_test},
    )


def classify(
    sets: Sets,
    /,
    *,
    backbone: str | None = None,
    data: str | None = None,
    classes: Classes = None,
    max_bad_fraction: BadFraction = None,
    split: Places = None,
    out: Path | None = None,
    reals: Positive = 50,
    times: Annotated[Positive, Parameter(metavar="T")] = 10,
    keep: Annotated[Numbers, Parameter(metavar="K,…")] = (),
    seed: Seed = 0,
    dry_run: DryRun = False,
    machine: MachineFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Classify by a backbone.

    Args:
        sets: Distilled sets, folders that hold some, or class folders.
        backbone: As in a recipe. Default: the backbone that each set was made with.
        data: Real images to test the backbone on. Default: those that the set was made of.
        classes: For a folder that others made: the class folders in label order, or a subset of ImageNet.
        split: Where the splits lie, where this is not plain: train=FOLDER,test=FOLDER. test=val tests on val.
        out: Folder of the results of sets that lie elsewhere. Default: the folder of each set, or NAME-judged for a folder
            that others made.
        reals: Real test images of each class.
        times: Noise levels for each image and class.
        keep: With many classes: how many are left after each stage, such as 100,10. Default: all to the end.
        seed: Seed of the noises and of the choice of test images.
    """
    from dap.verbs.classify import Levels
    from dap.verbs.classify import classify as run

    chosen: dict[str, Any] = {"backbone": backbone, "data": data, "classes": classes, "reals": reals, "split": split}
    chosen |= {"max_bad_fraction": max_bad_fraction, "levels": Levels(times, tuple(keep), seed)}
    chosen |= {"machine": machine_of(machine), "watcher": watcher_of(output)}
    if dry_run:
        from dap.verbs.planning.networks import planned_classify

        return forecast(planned_classify(sets, **chosen), out or Path())
    found = run(sets, out=out, **chosen)
    lines = [
        f"{path}: {one['agreement']:.1%} of {len(one['images'])} images are what they are labelled to {one['backbone']}, "
        f"which is right on {one['real']['accuracy']:.1%} of {counted(one['real']['images'], 'real test image')}"
        for path, one in found.items()
    ]
    lines.append(_next(sets, list(found), out))
    names = ("backbone", "agreement", "real")
    return Told(
        "\n".join(lines), {"sets": [{"set": path, **{n: one[n] for n in names}} for path, one in found.items()]}
    )


def report(
    sets: Sets,
    /,
    *,
    out: Path,
    title: str = "Distilled sets compared",
    full: Full = None,
    track: Track = None,
    output: OutputFlags | None = None,
) -> Told:
    """Report on sets.

    Args:
        sets: Distilled sets, or folders that hold some.
        out: The page to write, or its folder.
        title: Heading of the page.
    """
    from dap.verbs.report import Results, ceilings_of, check_tracking, found_sets, write_page

    check_tracking(track)
    del output
    found, known = found_sets(sets), ceilings_of(full)
    return shown(Results(tuple(found), write_page(found, out, title, known), full=known), track)


def rank(
    sets: Sets,
    /,
    *,
    network: str = "convnet3",
    hard: Annotated[str | None, Parameter(metavar="PROTOCOL")] = None,
    own: Annotated[str | None, Parameter(metavar="PROTOCOL")] = None,
    augmented: Annotated[str | None, Parameter(metavar="PROTOCOL")] = None,
    plain: Annotated[str | None, Parameter(metavar="PROTOCOL")] = None,
    full: Full = None,
    out: Path | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Rank sets.

    Args:
        sets: Evaluated sets, or folders that hold some. Sets of random images must be among them.
        network: Only trainings of this network count.
        hard: Protocol with hard labels.
        own: The methods' own protocol, such as one with soft labels.
        augmented: Protocol with augmentation.
        plain: Protocol without augmentation.
        out: Folder of the scores of sets that lie elsewhere, such as that of dap evaluate --out. Default: the folder of each
            set.
    """
    from dap.verbs.rank import rank as run

    del output
    found = run(sets, network=network, hard=hard, own=own, augmented=augmented, plain=plain, full=full, out=out)
    lines, values = [], []
    for path, scores in found.items():
        told = [f"{name} {value:.3f}" for name, value in scores.shown.items()]
        lines.append(f"{path}: {', '.join(told) or 'no score'}")
        values.append({"set": path, **scores.shown, "lacks": list(scores.lacks)})
    lacking = dict.fromkeys(line for scores in found.values() for line in scores.lacks)
    lines += list(lacking)[:MOST_LACKING]
    lines += [f"and {len(lacking) - MOST_LACKING} more; --json has them all"] if len(lacking) > MOST_LACKING else []
    lines.append(_next(sets, list(found), out))
    return Told("\n".join(lines), {"sets": values})


def _next(sets: Sequence[Path], results: Sequence[Path], out: Path | None) -> str:
    """The command that reports on what was written."""
    from dap.evaluation.report.page import page_of

    elsewhere = any(not any(path.is_relative_to(one) for one in sets) for path in results)
    shown = list(sets) if not elsewhere else results if out is None else [page_of(out).parent]
    return f"Next: dap report {shlex.join(map(str, shown))} --out report"
