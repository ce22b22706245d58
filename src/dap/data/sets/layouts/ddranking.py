"""The data sets that DD-Ranking can score, the order of their classes, and a configuration of DD-Ranking for a set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dap import imagenet
from dap.base.errors import DapError
from dap.data.real.names import some

SCORED: dict[str, Sequence[int]] = {
    "ImageNette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "ImageWoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "ImageMeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "ImageSquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "ImageFruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "ImageYellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
    "ImageNet1K": range(1000),
}
"""The ImageNet data sets of DD-Ranking (version 0.2.0). For label 0, 1, … of each, its index among the thousand
classes."""

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

NOT_SCORED = (
    "DD-Ranking knows CIFAR10, CIFAR100, TinyImageNet, ImageNet1K and six subsets of ImageNet by name, and these classes are "
    "not recognised as one of them: where they are CIFAR100's or TinyImageNet's in their order, put that name into the YAML."
)

HEADER = """# For DD-Ranking 0.2.0, after the values of its own demonstrations. real_data_path, teacher_dir and
# random_data_path are yours to fill; the images are given to compute_metrics(image_path=...).
"""


def scored_as(class_names: Sequence[str]) -> str | None:
    """The name of the DD-Ranking data set that has exactly these classes in this order; None where no data set has
    them.

    Raises:
        DapError: a data set has these classes in another order. DD-Ranking's labels would then be wrong for the set.
    """
    names = imagenet.lookup(list(imagenet.names().values()))
    hits = [imagenet.find(name, names) for name in class_names]
    found = [hit[0] if len(hit) == 1 else -1 for hit in hits]
    known: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {name: (order, found) for name, order in SCORED.items()}
    known["CIFAR10"] = (CIFAR10, [name.lower() for name in class_names])
    for name, (order, mine) in known.items():
        if list(order) == list(mine):
            return name
        if len(order) == len(mine) and set(order) == set(mine):
            right = [class_names[list(mine).index(label)] for label in order]
            raise DapError(
                f"These are the classes of DD-Ranking's {name}, but it labels them {some(right)}, and this set "
                f"{some(class_names)}: every score would be wrong. Put the set into its order first: dap import SET --out DIR "
                f"--classes {_quoted(right)}."
            )
    return None


def configs(dataset: str | None, ipc: int, side: int) -> dict[str, dict[str, Any]]:
    """The fields of DD-Ranking's YAML files: "soft" and "hard", for the label-robust score with soft and with hard
    labels.

    Args:
        dataset: the name of the data set, from `scored_as`.
        ipc: images per class.
        side: the side of the images, in px.
    """
    cifar = dataset == "CIFAR10"
    size = min(side, 224)
    normal = {
        "name": "Normalize",
        "args": {
            "mean": [0.4914, 0.4822, 0.4465] if cifar else [0.485, 0.456, 0.406],
            "std": [0.2023, 0.1994, 0.2010] if cifar else [0.229, 0.224, 0.225],
        },
    }
    crop = {"name": "RandomResizedCrop", "args": {"size": size, "scale": [0.08, 1.0]}}
    if size <= 64:
        crop = {"name": "RandomCrop", "args": {"size": size, "padding": 4}}
    train = [crop, {"name": "RandomHorizontalFlip", "args": {"p": 0.5}}, {"name": "ToTensor"}, normal]
    fit = [
        {"name": "Resize", "args": {"size": 256 if size == 224 else size}},
        {"name": "CenterCrop", "args": {"size": size}},
    ]
    deep = {32: "ConvNet-3", 64: "ConvNet-4", 128: "ConvNet-5"}
    network = next((name for largest, name in deep.items() if size <= largest), "ResNet-18-BN")
    torchvision = network.startswith("ResNet")
    common = {
        "dataset": dataset,
        "real_data_path": "./dataset/",
        "ipc": ipc,
        "im_size": [size, size],
        "model_name": network,
        "data_aug_func": "cutmix",
        "aug_params": {"beta": 1.0},
        "use_zca": False,
        "custom_train_trans": train,
        "custom_val_trans": [*fit, {"name": "ToTensor"}, normal],
        "num_eval": 5,
        "num_workers": 4,
        "device": "cuda",
        "dist": True,
        "syn_batch_size": 256,
        "real_batch_size": 256,
        "random_data_format": "image",  # with "tensor", DD-Ranking passes arguments in the wrong places
        "random_data_path": "./random_data/",
    }
    soft = {
        "stu_use_torchvision": torchvision,
        "tea_use_torchvision": torchvision,
        "teacher_dir": "./teacher_models",
        "teacher_model_names": [network],
        "use_aug_for_hard": False,
        "soft_label_mode": "M",
        "soft_label_criterion": "kl",
        "loss_fn_kwargs": {"temperature": 1.0, "scale_loss": False},
        "optimizer": "adamw",
        "lr_scheduler": "cosine",
        "weight_decay": 0.01,
        "momentum": 0.9,
        "num_epochs": 300,
        "eval_full_data": False,
        "save_path": "./lrs_soft.csv",
    }
    hard = {
        "use_torchvision": torchvision,
        "optimizer": "sgd",
        "lr_scheduler": "step",
        "step_size": 500,
        "weight_decay": 0.0005,
        "momentum": 0.9,
        "num_epochs": 1000,
        "default_lr": 0.01,
        "eval_full_data": False,
        "save_path": "./lrs_hard.csv",
    }
    return {"soft": common | soft, "hard": common | hard}


def _quoted(names: Sequence[str]) -> str:
    import shlex

    return " ".join(map(shlex.quote, names)) if len(names) <= 20 else "FILE.txt, one name a line"
