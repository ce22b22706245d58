"""The verbs that exchange sets and weights with other tools: import, export, push, convert."""

from __future__ import annotations

import functools
import shlex
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from dap.base.parsing import counted
from dap.cli.flags import (
    Changes,
    Classes,
    DryRun,
    Dtype,
    Floats,
    MaybePositive,
    Numbers,
    OutputFlags,
    PlaceFlags,
    Places,
    Positive,
    Seed,
    Told,
    assignments,
    machine_of,
    watcher_of,
)
from dap.cli.results import forecast, free

LABELS = Group("Stored labels (--layout fkd, --layout labels)", sort_key=20)
Source = Annotated[str, Parameter(metavar="SOURCE")]
Layout = Annotated[
    str,
    Parameter(
        help="folders, minimax (also mgd3, manifoldgd), rded (also ddranking), d4m, tensors, parquet, webdataset, fiftyone, set. "
        "Default: found out and said.",
        show_default=False,
    ),
]
Names = Annotated[
    Classes,
    Parameter(
        help="Names in label order; or imagenette, imagewoof, imageidc, imagenet100, imagenet1k; or a .txt or .json file of "
        "names; or 'sorted'; or how many classes there are, where they are only numbered.",
    ),
]
Pick = Annotated[
    str | None,
    Parameter(
        metavar="natural|string|random",
        help="natural takes the first images, 2 before 10. string takes the first images, 10 before 2, as MinimaxDiffusion's "
        "evaluation does. random draws them. Default: string for the layout minimax, else natural.",
    ),
]


def import_(
    source: Source,
    /,
    *,
    out: Path,
    layout: Layout = "auto",
    classes: Names = None,
    ipc: MaybePositive = None,
    pick: Pick = None,
    seed: Seed = 0,
    mean: Floats = None,
    std: Floats = None,
    labels: Annotated[str | None, Parameter(metavar="FILE")] = None,
    licence: str | None = None,
    dry_run: DryRun = False,
    output: OutputFlags | None = None,
) -> Told:
    """Import a set.

    Args:
        source: A folder of class folders, or a .pt, .safetensors, parquet or .tar file.
        out: Folder of the set.
        ipc: Images per class. Default: all.
        seed: Seed of a random pick.
        mean: Mean that normalised tensors have lost: one number, or one for each channel.
        std: Standard deviation that normalised tensors have lost: one number, or one for each channel.
        labels: File of the labels of tensors, if the labels have a file of their own.
        licence: Licence of the images, for the card.
    """
    from dap.data.sets.imports import import_set

    told = functools.partial(watcher_of(output).images, out.name)
    given = {"layout": layout, "ipc": ipc, "pick": pick, "seed": seed, "labels": labels}
    given |= {"class_names": classes, "mean": mean, "std": std}
    if dry_run:
        from dap.verbs.planning.exchange import planned_import

        return forecast(planned_import(Path(source), out, **given), out)
    before = (out / "import.json").is_file()
    made = import_set(source, out, licence=licence, progress=told, **given)
    notes = made.noted("import.json")["notes"]
    if before:
        notes = [f"{out} is this import already, and it is whole: nothing was written."]
    again = shlex.join(["dap", "evaluate", str(made.path)])
    return Told(
        "\n".join([*notes, f"{counted(len(made.records), 'image')} in {made.path}", f"Next: {again} --data FOLDER"]),
        {"set": made.path, "images": len(made.records), "notes": notes},
    )


def export(
    set_: Annotated[Path, Parameter(name="SET", metavar="SET")],
    /,
    *,
    out: Path,
    layout: str = "imagefolder",
    shard_size: MaybePositive = None,
    labels: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    teacher: Annotated[str | None, Parameter(group=LABELS)] = None,
    protocol: Annotated[str, Parameter(group=LABELS)] = "fkd-soft",
    epochs: Annotated[MaybePositive, Parameter(group=LABELS)] = None,
    changes: Annotated[Changes, Parameter(group=LABELS)] = None,
    data: Annotated[str | None, Parameter(group=LABELS)] = None,
    split: Annotated[Places, Parameter(group=LABELS)] = None,
    times: Annotated[MaybePositive, Parameter(group=LABELS)] = None,
    keep: Annotated[Numbers, Parameter(group=LABELS, metavar="K,…")] = (),
    reals: Annotated[Positive, Parameter(group=LABELS)] = 200,
    most_hours: Annotated[float, Parameter(group=LABELS, metavar="H")] = 24.0,
    allow_code: Annotated[bool, Parameter(group=LABELS)] = False,
    dry_run: DryRun = False,
    machine: PlaceFlags | None = None,
    output: OutputFlags | None = None,
) -> Told:
    """Export a set.

    Args:
        set_: The distilled set.
        out: A new folder, or an earlier export of the same set.
        layout: imagefolder, parquet, webdataset, ddranking, pt, fiftyone; or fkd, a teacher's labels of every augmented image; or
            labels, one label of each image.
        shard_size: Images in each file. Default: 5000 for parquet, 1000 for webdataset.
        labels: A folder of --layout labels: these soft labels go with the images. Weights of images go with them anyway.
        teacher: A file of dap train-teacher, torchvision:NAME with its ImageNet weights, or backbone:NAME.
        protocol: For fkd, the protocol whose augmentation and epochs are taken.
        epochs: For fkd, epochs instead of the protocol's own.
        data: For fkd and backbone:NAME, the real images to test on. Default: those that the set was made of.
        split: For fkd and backbone:NAME, where the splits lie, where this is not plain: train=FOLDER,test=FOLDER.
        times: For backbone:NAME, noise levels for each image and class. Default: 10.
        keep: For backbone:NAME, how many classes are left after each stage, such as 100,10. Default: stages from 21 classes on.
        reals: For backbone:NAME, real training images that choose and test the temperature, of all classes together.
        most_hours: For backbone:NAME, the limit of the time that the work may take.
        allow_code: Run code of others that the teacher's file or the protocol names.
    """
    from dap.data.sets.distilled import DistilledSet

    del allow_code  # `main` reads it, because it holds for all that this verb does
    made, watcher = DistilledSet.open(set_), watcher_of(output)
    if layout in ("fkd", "labels"):
        from dap.posterior import Levels, usual_levels
        from dap.verbs.labelling.by_backbone import Asked, summary
        from dap.verbs.labelling.labels import store_image_labels, store_labels

        usual = usual_levels(len(made.class_names))
        asked = Asked(Levels(times or usual.times, tuple(keep) or usual.keep), reals, most_hours)
        told = {"teacher": teacher, "data": data, "split": split, "asked": asked, "machine": machine_of(machine)}
        told["watcher"] = watcher
        on = [part for flag, value in (("--data", data), ("--split", split)) if value for part in (flag, value)]
        changed = assignments(changes or [], "--set", "FIELD")
        if dry_run:
            from dap.verbs.planning.exchange import planned_labels

            how = {"protocol": protocol, "epochs": epochs, "changes": changed}
            return forecast(planned_labels(made, out, layout, **how, **told), out)
        if layout == "labels":
            how = store_image_labels(made, out, **told)
            line = shlex.join(
                ["dap", "evaluate", str(made.path), "--protocol", "quick-soft", "--teacher", str(out), *on]
            )
            said = [summary(how)] if "backbone" in how else []
            return Told(
                "\n".join([*said, f"Labels in {out}", f"Next: {line}"]), {"labels": out, "set": made.path, "how": how}
            )
        store_labels(made, out, protocol=protocol, epochs=epochs, changes=changed, **told)
        again = ["--protocol", protocol, *(["--epochs", str(epochs)] if epochs else [])]
        again += [part for item in changes or [] for part in ("--set", item)]
        line = shlex.join(["dap", "evaluate", str(made.path), *again, "--labels", str(out), *on])
        return Told(f"Labels in {out}\nNext: {line}", {"labels": out, "set": made.path})
    if dry_run:
        from dap.verbs.planning.exchange import planned_export

        return forecast(planned_export(made, out, layout, shard_size=shard_size, labels=labels), out)
    from dap.data.real.sizes import noun
    from dap.data.sets.export import export as write
    from dap.verbs.exchange.soft import logits_of

    told = functools.partial(watcher.images, out.name)
    soft = None if labels is None else logits_of(made, labels)
    said = write(made, out, layout, shard_size=shard_size, logits=soft, progress=told)
    last = f"{len(made.records)} {noun(made.frames)}s as {layout} in {out}; see its README.md."
    values = {"export": out, "layout": layout, "images": len(made.records), "notes": said["notes"]}
    return Told("\n".join([*said["notes"], last]), values)


def push(
    set_: Annotated[Path, Parameter(name="SET", metavar="SET")],
    to: Annotated[str, Parameter(name="NAME", metavar="OWNER/NAME")],
    /,
    *,
    layout: Annotated[str, Parameter(metavar="parquet|imagefolder|webdataset")] = "parquet",
    private: bool = False,
    allow_near_copies: bool = False,
    replace: bool = False,
    labels: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    dry_run: DryRun = False,
    output: OutputFlags | None = None,
) -> Told:
    """Push a set.

    Args:
        set_: The distilled set, judged by dap evaluate, which searches for near-copies of real images.
        to: The data set on the hub. It is made if it is not there.
        layout: What is uploaded.
        private: Make a new data set private.
        allow_near_copies: Upload near-copies of real images, or a set that was never searched for them.
        replace: Replace the files that the data set on the hub holds.
        labels: A folder of dap export --layout labels: these soft labels go with the images.
    """
    if dry_run:
        import tempfile

        from dap.data.sets.distilled import DistilledSet
        from dap.verbs.planning.exchange import planned_push

        how = {"layout": layout, "allow_near_copies": allow_near_copies, "labels": labels}
        return forecast(planned_push(DistilledSet.open(set_), to, **how), Path(tempfile.gettempdir()))
    from dap.verbs.exchange.push import push as run

    chosen = {"layout": layout, "private": private, "allow_near_copies": allow_near_copies, "replace": replace}
    address = run(set_, to, **chosen, labels=labels, watcher=watcher_of(output))
    return Told(
        f"{address}\nNext: datasets.load_dataset({to!r}, split='train')", {"set": set_, "address": address, "name": to}
    )


def convert(
    source: Source,
    /,
    *,
    out: Path,
    revision: str | None = None,
    vae: str | None = None,
    heads: MaybePositive = None,
    classes: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    tokenizer: str | None = None,
    prediction: Literal["epsilon", "v_prediction"] | None = None,
    size: MaybePositive = None,
    family: Literal["dit", "sit", "repa", "lightningdit"] | None = None,
    path: Literal["linear", "gvp", "vp"] | None = None,
    encoder: str | None = None,
    dtype: Dtype = "float32",
    offline: bool = False,
    dry_run: DryRun = False,
    output: OutputFlags | None = None,
) -> Told:
    """Convert weights.

    Args:
        source: Hub id, diffusers folder, a Stable Diffusion 1, 2 or XL in one file, or a file as the authors of DiT,
            MinimaxDiffusion, SiT, REPA, REG, LightningDiT, PixArt, U-ViT, MDTv2, Latte, ADM, EDM, EDM2 or latent
            diffusion publish it.
        out: Folder of the pipeline.
        revision: Branch, tag or commit of a hub id.
        vae: For a .pt: folder or hub id of its autoencoder, such as stabilityai/sd-vae-ft-ema, or VA-VAE's own file.
        heads: For a .pt whose width is not one of the paper's four widths: the number of attention heads.
        classes: JSON list of class names in label order.
        tokenizer: For a Stable Diffusion in one file: folder or hub id of its tokenizer; default: CLIP's. For PixArt: T5's.
        prediction: For a Stable Diffusion in one file: what it predicts; default: what it shows.
        size: For a Stable Diffusion in one file or a PixArt: side of its images in px; default: what it shows.
        family: For a .pt: the model that it is of; default: what it shows.
        path: For a .pt of a flow: its path; default: what it says, else linear.
        encoder: For a .pth of PixArt: folder or hub id of its T5, or of a pipeline that has it. For a REG: of its DINOv2.
        dtype: Type of the numbers that are written.
        offline: Never ask the network, only the local cache.
    """
    del output
    chosen = {"revision": revision, "vae": vae, "heads": heads, "classes": classes, "dtype": dtype, "offline": offline}
    chosen |= {"tokenizer": tokenizer, "prediction": prediction, "size": size}
    chosen |= {"family": family, "flow_path": path, "encoder": encoder}
    if dry_run:
        from dap.verbs.planning.backbones import planned_convert

        return forecast(planned_convert(source, out, **chosen), out)
    from dap.backbones.converting.convert import convert as run

    made = run(source, out, **chosen)
    again = shlex.join(["dap", "distill", "--backbone", str(made)])
    return Told(f"Pipeline in {made}\nNext: {again} --data FOLDER --out {free('runs/first')}", {"pipeline": made})
