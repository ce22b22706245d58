"""The verbs that make sets, or captions for methods that need them: demo, distill, sweep, compare, caption; also worker."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dap.base.parsing import counted
from dap.cli.flags import (
    Classes,
    DryRun,
    EngineFlags,
    JudgingFlags,
    MachineFlags,
    MaybePositive,
    Numbers,
    OutputFlags,
    PlaceFlags,
    Places,
    Positive,
    QuickJudgingFlags,
    Told,
    Track,
    Words,
    assignments,
    engine_of,
    judging_of,
    machine_of,
    output_of,
    watcher_of,
)
from dap.cli.recipe import CommonFlags, Ipcs, RecipeFlags, recipe_fields, recipe_values, varied
from dap.cli.results import forecast, shown_of
from dap.verbs.options import Judging

RecipeFile = Annotated[
    str | None,
    Parameter(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe. Flags override what stands in it."),
]
SetsEach = Annotated[Positive, Parameter(name="--sets")]
Methods = Annotated[
    Words,
    Parameter(
        help="Methods with commas between them, each a name or file.py:Name; dap methods lists the names. NAME@BACKBONE takes "
        "another backbone for one method. Default: random,vanilla,dap,auto; where no backbone knows the images: random, dm and, "
        "with --classifier, herding and rded.",
    ),
]
Budget = Annotated[str | None, Parameter(metavar="TIME")]
Subsample = Annotated[Numbers, Parameter(name="--subsample")]


def command() -> str:
    """The command line of this process, as it is recorded in a set."""
    return shlex.join(["dap", *sys.argv[1:]])


def distill(
    recipe: RecipeFile = None,
    /,
    *,
    out: Path,
    budget: Budget = None,
    dry_run: DryRun = False,
    flags: RecipeFlags | None = None,
    engine: EngineFlags | None = None,
    machine: MachineFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Make a distilled set.

    Args:
        out: Folder of the set.
        budget: The time that the set may take, such as 90s, 10m or 1h. The number of iterations or steps follows from it, by a
            short time test on this machine. Default: the method's usual work; some 10m at most where the method is chosen too.
    """
    from dap.recipe import Recipe

    chosen = Recipe.parse(recipe_values(recipe, flags or {}), recipe or "the recipe")
    if dry_run:
        from dap.verbs.planning.grids import planned_set

        return forecast(
            planned_set(chosen, out, machine=machine_of(machine), watcher=watcher_of(output), budget=budget), out
        )
    from dap.verbs.distill import distill as make

    told = {"machine": machine_of(machine), "watcher": watcher_of(output), "command": command()}
    made = make(chosen, out, engine=engine_of(engine), budget=budget, **told)
    from dap.data.real.sizes import noun
    from dap.verbs.report import write_page

    page = write_page([out], out, f"{out.name}: {(made.recipe or {}).get('method', chosen.method)}")
    again = shlex.join(["dap", "evaluate", str(made.path)])
    return Told(
        f"{len(made.records)} {noun(made.frames)}s in {made.path}\nReport: {page}\nNext: {again}",
        {"set": made.path, "images": len(made.records), "page": page},
    )


def demo(
    *,
    out: Path | None = None,
    backbone: Literal["dit", "unet"] = "dit",
    sets: SetsEach = 1,
    dry_run: DryRun = False,
    judged: QuickJudgingFlags | None = None,
    track: Track = None,
    machine: MachineFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Run the main job.

    Args:
        out: Folder of the sets and the report. Default: runs/demo-BACKBONE.
        backbone: The embedded backbone.
        sets: Distilled sets of each method, each with its own seed.
    """
    from dap.verbs.compare import sweep as run
    from dap.verbs.compare import swept

    base = {"backbone": {"path": {"dit": "starter", "unet": "starter-unet"}[backbone]}}
    vary = {"method": ["random", "vanilla", "dap", "auto"]}
    name = {"dit": "DiT", "unet": "Stable Diffusion's U-Net"}[backbone]
    title = f"Fashion-MNIST at 10 images per class: real, vanilla, DAP, auto ({name})"
    where = out or Path(f"runs/demo-{backbone}")
    told = {"machine": machine, "output": output, "track": track, "dry_run": dry_run}
    judging = judging_of(judged, protocol="quick-hard")
    return _grid(run, swept, base, vary, sets, where, title=title, judging=judging, **told)


def sweep(
    recipe: RecipeFile = None,
    /,
    *,
    out: Path,
    vary: Annotated[list[str] | None, Parameter(metavar="FLAG=V1,V2,…")] = None,
    sets: SetsEach = 5,
    dry_run: DryRun = False,
    engine: EngineFlags | None = None,
    flags: RecipeFlags | None = None,
    judged: JudgingFlags | None = None,
    track: Track = None,
    machine: MachineFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Make and judge a grid.

    Args:
        out: Folder of the grid.
        vary: A recipe flag and its values, such as scale=0,0.1,0.2. May be repeated.
        sets: Distilled sets of each point of the grid, each with its own seed.
    """
    from dap.verbs.compare import sweep as run
    from dap.verbs.compare import swept

    values, fields = recipe_values(recipe, flags or {}), varied(vary or [])
    if methods := [str(one) for one in fields.get("method", ())]:
        _check_wanted(methods, flags or {})
    title = f"Sweep over {', '.join(item.partition('=')[0] for item in vary or []) or 'seeds'}"
    told = {"machine": machine, "output": output, "track": track, "dry_run": dry_run, "engine": engine}
    return _grid(run, swept, values, fields, sets, out, title=title, judging=judging_of(judged), **told)


def compare(
    recipe: RecipeFile = None,
    /,
    *,
    out: Path,
    methods: Methods = (),
    ipcs: Ipcs = (),
    sets: SetsEach = 3,
    option: Annotated[list[str] | None, Parameter(metavar="METHOD.NAME=VALUE")] = None,
    subsample: Subsample = (),
    dry_run: DryRun = False,
    engine: EngineFlags | None = None,
    flags: CommonFlags | None = None,
    judged: JudgingFlags | None = None,
    track: Track = None,
    machine: MachineFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Compare methods.

    Args:
        out: Folder of the comparison.
        ipcs: Images per class: one number, or several with commas between them. Default: the recipe's, which is 10.
        sets: Distilled sets of each method, each with its own seed.
        option: An option of one method's own, as YAML; dap methods NAME lists them. May be repeated.
        subsample: Judge also random draws of N images a class from each larger set, as the paper's scaling table does.
    """
    from dap.verbs.compare import compare as run
    from dap.verbs.compare import compared

    options, values = assignments(option or [], "--option", "METHOD.NAME"), recipe_values(recipe, flags or {})
    if not methods:
        from dap.verbs.picking.compared import methods_for

        where = {"machine": machine_of(machine), "watcher": watcher_of(output), "keep": not dry_run}
        chosen = methods_for(values, ipcs, out, judging=judging_of(judged), **where)
        methods, values, options = chosen.methods, dict(chosen.base), {**chosen.options, **options}
    _check_wanted(methods, flags or {})
    told = {"machine": machine, "output": output, "track": track, "dry_run": dry_run, "engine": engine}
    told |= {"judging": judging_of(judged), "options": options, "subsample": subsample}
    return _grid(run, compared, values, methods, ipcs, sets, out, **told)


def worker(job: Path, /, *, code: list[str] | None = None, allow_code: bool = False) -> None:
    """Do the work that a parent process wrote into a file.

    Args:
        job: The file.
        code: Code of the user's own that the parent process may run. It counts because it stands on the command line.
        allow_code: Run also code that files name.
    """
    from dap.base.workers import end_with_parent
    from dap.cli.bars import Lines
    from dap.verbs.jobs import JUDGING, TEACHER

    del code, allow_code
    if job.name == TEACHER:
        from dap.verbs.training.teacher import work_on
    elif job.name == JUDGING:
        from dap.verbs.evaluate import work_on
    else:
        from dap.verbs.compare import work_on
    end_with_parent()
    work_on(job, Lines(every=float("inf")))


def caption(
    *,
    data: str,
    out: Path,
    classes: Classes = None,
    max_bad_fraction: float = 0.01,
    split: Places = None,
    model: str | None = None,
    ask: Annotated[str | None, Parameter(metavar="TEXT")] = None,
    per_class: MaybePositive = None,
    batch: Positive = 16,
    dry_run: DryRun = False,
    machine: PlaceFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Caption real images.

    Args:
        data: The real images, as in a recipe: fashion-mnist, or a folder.
        out: File of JSON lines to write, such as captions.jsonl.
        classes: The classes to use, in label order, or a subset of ImageNet. Default: all.
        max_bad_fraction: The largest fraction of the images that may be broken.
        split: Where the splits lie, where this is not plain: train=FOLDER,test=FOLDER. test=val tests on val.
        model: Folder or hub id of an image-to-text model of transformers. Default: BLIP.
        ask: The question to a chat model, or the beginning of every caption of another model. {} stands for the class.
        per_class: Images of each class. Default: all.
        batch: Images that are captioned at once.
    """
    from dap.verbs.caption import MODEL
    from dap.verbs.caption import caption as run

    chosen: dict[str, Any] = {"classes": classes, "split": split, "ask": ask, "per_class": per_class, "batch": batch}
    chosen |= {"max_bad_fraction": max_bad_fraction, "model": model or MODEL}
    chosen |= {"machine": machine_of(machine), "watcher": watcher_of(output)}
    if dry_run:
        from dap.verbs.planning.networks import planned_caption

        return forecast(planned_caption(data, out, **chosen), out.parent)
    made = run(data, out, **chosen)
    again = shlex.join(["dap", "distill", "--method", "vlcp", "--captions", str(out)])
    return Told(f"{counted(made, 'caption')} added to {out}\nNext: {again} ...", {"captions": out, "added": made})


def _grid(
    run: Callable[..., Any],
    grid: Callable[..., Any],
    *given: Any,
    judging: Judging,
    machine: MachineFlags | None,
    output: OutputFlags | None,
    track: str | None,
    dry_run: bool,
    engine: EngineFlags | None = None,
    title: str | None = None,
    **options: Any,
) -> Told:
    """Run `compare` or `sweep`, and return the results as a `Told`. If cells fail, print the other results and raise.

    In a dry run, return what the work would take; `grid(…)` is the grid that `run(…)` would run.
    """
    where, watcher = machine_of(machine), watcher_of(output)
    if dry_run:
        from dap.verbs.planning.grids import planned_grid

        cells = grid(*given, judging=judging, machine=where, **options)
        return forecast(planned_grid(cells, machine=where, watcher=watcher), cells.out)
    from dap.verbs.report import check_tracking

    check_tracking(track)
    told = {"judging": judging, "machine": where, "watcher": watcher, "command": command(), "engine": engine_of(engine)}
    told |= {} if title is None else {"title": title}
    return shown_of(lambda: run(*given, **options, **told), track, output_of(output))


def _check_wanted(methods: Sequence[str], flags: dict[str, Any]) -> None:
    """Check that at least one method uses each flag that was given. A recipe file may hold more than the methods use.

    Raises:
        DapError: none of the methods uses a flag.
    """
    from dap.base.errors import DapError
    from dap.methods import find
    from dap.verbs.compare import users

    uses = [users(find(name.partition("@")[0])) for name in methods]
    fields = {name: flag for name, (flag, _) in recipe_fields().items() if name in flags}
    idle = [flag for name, flag in fields.items() if not any(mine.get(name.partition(".")[0], True) for mine in uses)]
    # A list of methods shares its backbone, whoever uses it.
    if idle := [flag for flag in idle if flag != "backbone"]:
        raise DapError(
            f"Of {', '.join(methods)} none takes {', '.join(f'--{flag}' for flag in idle)}; a method's own options are given as "
            "--option METHOD.NAME=VALUE."
        )
