"""The table of the command's verbs. For each verb it holds the place of its function, what the verb does, and two examples.

The table is read without importing any of these functions, so that `dap --help` answers at once.
"""

from __future__ import annotations

from typing import NamedTuple

from cyclopts import Group

MAKE = Group("Make sets", sort_key=1)
JUDGE = Group("Judge sets", sort_key=2)
EXCHANGE = Group("Exchange sets and weights", sort_key=3)
LOOK = Group("Look and check", sort_key=4)


class Verb(NamedTuple):
    """A verb of the command.

    Attributes:
        home: the module below `dap.cli`, and the function in it.
        says: a sentence on what the verb does. Empty for a verb that is not for people.
        usage: the words that follow the verb on a command line.
        group: the heading of the verb in `dap --help`.
        examples: command lines that run as they are, if the files that they name are there.
    """

    home: str
    says: str
    usage: str = ""
    group: Group = LOOK
    examples: tuple[str, ...] = ()


VERBS = {
    "demo": Verb(
        "making:demo",
        "Run the main job on the embedded starter: four methods, their accuracy and a report.",
        "[FLAGS]",
        MAKE,
        ("dap demo", "dap demo --backbone unet --sets 3 --out runs/unet"),
    ),
    "distill": Verb(
        "making:distill",
        "Make a distilled set of any folder of images, or go on with an interrupted one.",
        "[RECIPE] --out DIR [FLAGS]",
        MAKE,
        (
            "dap distill --method random --ipc 1 --out runs/random",
            "dap distill --data ~/animals --ipc 10 --budget 10m --out runs/animals",
        ),
    ),
    "compare": Verb(
        "making:compare",
        "Make sets by several methods, train several networks on them, and write one table and report.",
        "[RECIPE] --out DIR [FLAGS]",
        MAKE,
        (
            "dap compare --methods random,dm,dap --ipc 1,10 --out runs/compare",
            "dap compare --methods mgd3,dap --option mgd3.scale=0.2 --out runs/two",
        ),
    ),
    "sweep": Verb(
        "making:sweep",
        "Make and judge sets for every combination of values of some recipe flags, and report on them.",
        "[RECIPE] --out DIR [FLAGS]",
        MAKE,
        (
            "dap sweep --method dap --vary scale=0,0.02,0.05 --sets 5 --out runs/scale",
            "dap sweep --vary method=random,dap --vary ipc=1,10 --out runs/grid",
        ),
    ),
    "caption": Verb(
        "making:caption",
        "Write a caption for every real image, for methods that need captions; an interrupted run goes on.",
        "--data DIR --out FILE [FLAGS]",
        MAKE,
        (
            "dap caption --data fashion-mnist --per-class 100 --out captions.jsonl",
            'dap caption --data ~/animals --ask "a photo of a {}" --out captions.jsonl',
        ),
    ),
    "train-backbone": Verb(
        "training:train_backbone",
        "Train a backbone from nothing on your own images, in the time you give; an interrupted run goes on.",
        "--data DIR --out DIR [FLAGS]",
        MAKE,
        (
            "dap train-backbone --data ~/animals --out animals-dit",
            "dap train-backbone --data ~/animals --minutes 240 --kind unet --out animals-sd",
        ),
    ),
    "tune-backbone": Verb(
        "training:tune_backbone",
        "Let a Stable Diffusion (LoRA) or a DiT (DiffFit, new labels) learn your own classes; an interrupted run goes on.",
        "BACKBONE --data DIR --out DIR [FLAGS]",
        MAKE,
        (
            "dap tune-backbone CompVis/stable-diffusion-v1-4 --data ~/animals --out w",
            "dap tune-backbone facebook/DiT-XL-2-256 --data ~/animals --out animals-dit",
        ),
    ),
    "evaluate": Verb(
        "judging:evaluate",
        "Train networks on sets and test them on real images.",
        "SET … [FLAGS]",
        JUDGE,
        (
            "dap evaluate runs/random --protocol small-hard --trials 3",
            "dap evaluate runs/theirs --data ~/animals --set size=64 --epochs 100",
        ),
    ),
    "train-teacher": Verb(
        "judging:train_teacher",
        "Train a classifier on all real images, for soft labels and as a ceiling.",
        "--data DIR --out FILE [FLAGS]",
        JUDGE,
        (
            "dap train-teacher --data fashion-mnist --out teacher.safetensors",
            "dap train-teacher --data ~/animals --network resnet18 --out r18.safetensors",
        ),
    ),
    "classify": Verb(
        "judging:classify",
        "Let the backbone itself say which class the images of sets show, and real test images.",
        "SET … [FLAGS]",
        JUDGE,
        (
            "dap classify runs/random --backbone starter --reals 5",
            "dap classify runs/nette --times 20 --keep 5,2",
        ),
    ),
    "report": Verb(
        "judging:report",
        "Write one HTML page on evaluated sets, with its tables as Markdown, CSV and LaTeX beside it.",
        "SET … --out PATH [FLAGS]",
        JUDGE,
        (
            "dap report runs --out report",
            'dap report runs/scale --title "What the scale does" --out scale.html',
        ),
    ),
    "rank": Verb(
        "judging:rank",
        "Give DD-Ranking's scores of evaluated sets: how much is the images, how much labels and augmentation.",
        "SET … [FLAGS]",
        JUDGE,
        (
            "dap rank runs --hard small-hard --network convnet3",
            "dap rank runs --hard small-hard --own rded-soft --full 0.92",
        ),
    ),
    "import": Verb(
        "exchange:import_",
        "Make a distilled set of images that others made, in any layout of the field.",
        "SOURCE --out DIR [FLAGS]",
        EXCHANGE,
        (
            "dap import minimax/woof --classes imagewoof --ipc 10 --out runs/theirs",
            "dap import images.pt --labels y.pt --mean 0.5 --std 0.5 --out runs/theirs",
        ),
    ),
    "export": Verb(
        "exchange:export",
        "Write a distilled set in a layout that other tools read.",
        "SET --out DIR [FLAGS]",
        EXCHANGE,
        (
            "dap export runs/random --layout parquet --out hub/mine",
            "dap export runs/random --layout fkd --teacher teacher.safetensors --out labels",
        ),
    ),
    "push": Verb(
        "exchange:push",
        "Put a distilled set on the Hugging Face hub, with a card that names the licences it follows from.",
        "SET OWNER/NAME [FLAGS]",
        EXCHANGE,
        ("dap push runs/random ada/flowers-10 --private", "dap push runs/random ada/flowers-10 --layout imagefolder"),
    ),
    "convert": Verb(
        "exchange:convert",
        "Write weights that people have as a diffusers folder of safetensors.",
        "SOURCE --out DIR [FLAGS]",
        EXCHANGE,
        (
            "dap convert facebook/DiT-XL-2-256 --out weights/dit",
            "dap convert DiT-XL-2-256x256.pt --vae stabilityai/sd-vae-ft-ema --out w",
        ),
    ),
    "look": Verb(
        "looking:look",
        "Say what a folder of images or a set holds: counts, duplicates, leaks, odd labels, broken files.",
        "FOLDER|SET [FLAGS]",
        LOOK,
        ("dap look ~/animals --out animals.png", "dap look runs/random --json"),
    ),
    "methods": Verb(
        "looking:methods",
        "List the methods: what each makes, needs and costs, and when to take it; or tell of one all there is.",
        "[NAME] [FLAGS]",
        LOOK,
        ("dap methods mgd3", "dap methods --data ~/animals --ipc 10"),
    ),
    "status": Verb(
        "looking:status",
        "Say how far the sets and trainings in a folder are, how fast they go, and when they will be done.",
        "DIR [FLAGS]",
        LOOK,
        ("dap status runs/compare", "dap status runs/random --json"),
    ),
    "verify": Verb(
        "looking:verify",
        "Decode and hash every image of a set, and say what is missing or damaged.",
        "SET [FLAGS]",
        LOOK,
        ("dap verify runs/random", "dap verify runs/random --json"),
    ),
    "check": Verb(
        "looking:check",
        "Try a backbone, kernel, guidance or method, and say in words what is wrong with it.",
        "NAME [FLAGS]",
        LOOK,
        ("dap check rbf", "dap check my_method.py:Mine --device cpu"),
    ),
    "worker": Verb("making:worker", "", "FILE"),
}
"""Every verb by its name. The processes of `--workers` run `dap worker`."""
