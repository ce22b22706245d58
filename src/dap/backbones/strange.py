"""What a file or a folder is that no backbone can be made of, in a sentence that says what to give instead.

People have many files that look alike from outside: a LoRA, a ControlNet, an autoencoder, one network of a pipeline. The names of
the tensors tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from dap.backbones.known import KINDS
from dap.base.documents import regular
from dap.base.errors import DapError
from dap.base.parsing import shown

WHOLE = "Give the folder or hub id of its diffusers pipeline."
PART = "Give the folder of the whole pipeline, which has a model_index.json and this network in one of its parts."
BESIDE = "It works beside a model and is none. Give the model that it was trained for."

ENDINGS: Mapping[str, str] = {
    ".gguf": f"is a GGUF file, whose numbers are packed in a way that dap does not read. {WHOLE}",
    ".onnx": f"is an ONNX model, through which no gradient can go. {WHOLE}",
    ".msgpack": "holds weights for Flax. Give those for PyTorch, a .safetensors or a .bin file.",
    ".h5": "holds weights for TensorFlow. Give those for PyTorch, a .safetensors or a .bin file.",
    ".incomplete": "is a download that has not ended. Fetch the file anew.",
    ".part": "is a download that has not ended. Fetch the file anew.",
    ".crdownload": "is a download that has not ended. Fetch the file anew.",
}
"""Endings of names of files that are never read, and what is said of such a file."""

LORA = (
    "is a LoRA: it holds changes of a model's weights and not a model. Put it into its model in diffusers, by "
    "pipe.load_lora_weights(FILE), pipe.fuse_lora() and pipe.save_pretrained(FOLDER), and give this folder."
)

BY_TENSORS: tuple[tuple[str, str], ...] = (
    (r"(^|[._])lora([._]|$)|lora_(down|up|A|B|te|unet)|\.(hada_w1|lokr_w)", LORA),
    (r"^control_model\.|controlnet_(cond|down|mid)|(^|\.)zero_convs\.", f"is a ControlNet. {BESIDE}"),
    (r"^(ip_adapter|image_proj)\.|to_(k|v)_ip\.", f"is an IP-Adapter. {BESIDE}"),
    (r"motion_modules\.", f"is a motion module of AnimateDiff. {BESIDE}"),
    (r"^(emb_params|string_to_param|clip_[lg])$", f"is an embedding of a word (textual inversion). {BESIDE}"),
    (r"(^|\.)joint_blocks\.\d", f"is a Stable Diffusion 3 in one file. {WHOLE}"),
    (r"(^|\.)double_blocks\.\d", f"is a Flux in one file. {WHOLE}"),
    (r"^blocks\.\d+\.self_attn\.(q|norm_q)\.", f"is a Wan by the names of its authors. {WHOLE}"),
    (r"^attention_y_norm\.", f"is a Sana by the names of its authors. {WHOLE}"),
    (r"^(down_blocks|mid_block)\.\d*\.?(resnets|attentions)\.", f"is the U-Net of a diffusers pipeline alone. {PART}"),
    (r"^(single_)?transformer_blocks\.\d", f"is the transformer of a diffusers pipeline alone. {PART}"),
    (
        r"^((text|vision)_model\.)?(encoder\.layers|encoder\.block|embeddings|model\.layers)\.|^(text_model|shared)\.",
        f"is a text encoder alone. {PART}",
    ),
    (
        r"^(encoder|decoder)\.(conv_in|mid|mid_block|down|up)\b",
        "is an autoencoder alone. Give the file of the network as the source of dap convert; its autoencoder goes with --vae.",
    ),
)
"""Names of tensors, and what is said of a file that has such a one. The first that is found counts."""

NEEDLESS = re.compile(r"(Img2Img|Inpaint|ControlNet)+(?=Pipeline$)")
"""What stands in the name of a pipeline that takes an image besides the prompt."""


def refuse_ending(path: Path) -> None:
    """Refuse a file of a format that is never read, by the ending of its name.

    Raises:
        DapError: it is such a file, or an empty one.
    """
    if says := ENDINGS.get(path.suffix.lower()):
        raise DapError(f"{shown(path)} {says}")
    if regular(path).stat().st_size == 0:
        raise DapError(f"{shown(path)} is empty: it was not fetched or not written to its end. Fetch it anew.")


def refuse_tensors(path: Path, names: Collection[str]) -> None:
    """Refuse a file of tensors that are no model dap knows, but something that people have beside one.

    Args:
        path: the file, for the message.
        names: the names of its tensors.

    Raises:
        DapError: it is a LoRA, a ControlNet, one part of a pipeline, or another thing of `BY_TENSORS`.
    """
    for pattern, says in BY_TENSORS:
        if any(map(re.compile(pattern).search, names)):
            raise DapError(f"{shown(path)} {says}")


def unknown(path: Path, names: Collection[str]) -> DapError:
    """What is said of a file of tensors whose model is not known."""
    few = ", ".join(shown(name) for name in sorted(names)[:3])
    return DapError(
        f"{shown(path)} holds no model that dap knows; its tensors are called {few} and so on. docs/backbones.md lists the "
        "models that dap converts; give others as the folder of a diffusers pipeline."
    )


def refuse_folder(folder: Path) -> None:
    """Refuse a folder without `model_index.json`, and say what is in it.

    Raises:
        DapError: always.
    """
    says = f"{shown(folder)} has no model_index.json, so it is not a diffusers pipeline folder."
    if inner := sorted(index.parent for index in folder.glob("snapshots/*/model_index.json")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        raise DapError(f"{says} It is the cache of a hub id: give {name}, or the folder {shown(inner[-1])}.")
    if inner := sorted(index.parent for index in folder.glob("*/model_index.json")):
        raise DapError(f"{says} The folder {shown(inner[0])} in it is one; give that.")
    files = sorted(file.name for file in folder.iterdir() if file.is_file())
    if not any(folder.iterdir()):
        raise DapError(f"{says} It is empty.")
    if any(name.endswith(".onnx") for name in files):
        raise DapError(f"{says} It holds an ONNX model, through which no gradient can go. {WHOLE}")
    if "config.json" in files:
        raise DapError(f"{says} It holds one network alone (config.json). {PART}")
    weights = [name for name in files if name.endswith((".safetensors", ".ckpt", ".pt", ".pth", ".pkl"))]
    if weights:
        more = f"one of its {len(weights)} files of weights, such as" if len(weights) > 1 else "its file"
        raise DapError(f"{says} Give {more} {shown(folder / weights[0])}.")
    raise DapError(says)


def without_backbone(name: str) -> DapError:
    """What is said of a pipeline whose class has no backbone.

    Args:
        name: the class, as `model_index.json` names it.
    """
    *first, last = KINDS
    says = f"A {shown(name)} has no backbone yet; {', '.join(first)} and {last} have."
    plain = NEEDLESS.sub("", name)
    if plain != name and plain in KINDS:
        return DapError(
            f"{says} It takes an image besides the prompt, which dap does not give it. If its weights also make images from a "
            f"prompt alone, save them as such in diffusers: {plain}.from_pretrained(FOLDER).save_pretrained(NEW)."
        )
    if name.startswith("Onnx"):
        return DapError(
            f"{says} No gradient can go through an ONNX model; give the folder of the same weights in PyTorch."
        )
    return DapError(f"{says} Your own is a subclass of dap.Backbone, given as file.py:Name.")
