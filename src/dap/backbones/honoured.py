"""Checks the configuration of a pipeline against the tables of `configurations`, and says what of it decides a prediction."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dap import networks
from dap.backbones.configurations import (
    AUTOENCODERS,
    BETAS,
    BOTH,
    BY_KIND,
    CONSISTENT,
    FLOW,
    FLOWS,
    NETWORKS,
    NOISE_LEVELS,
    OWN_WAY,
    PIXEL_BETAS,
    PLAIN,
    QUANTISED,
    SHIFTED,
    SHIFTING,
    SWITCHED_OFF,
    TEXT,
    WAYS_OUT,
    Off,
    Table,
    is_autoencoder,
    newer,
)
from dap.backbones.known import KINDS, Kind
from dap.base.documents import fitted, read_text
from dap.base.errors import DapError
from dap.base.mistakes import reason
from dap.base.parsing import brief, parse_json, shown

DEEPEST = 500
"""How many layers a network may have. The deepest that are known here have less than 100."""
DEPTHS = (
    ("num_layers", "num_hidden_layers", "num_single_layers"),
    (
        "layers_per_block",
        "encoder_layers_per_block",
        "decoder_layers_per_block",
        "num_encoder_blocks",
        "num_decoder_blocks",
        "num_res_blocks",
        "num_blocks",
    ),
    ("transformer_layers_per_block", "reverse_transformer_layers_per_block"),
)
"""Fields that say how many layers there are. Of each line the largest counts, and the lines are multiplied."""
BLOCKS = (
    "block_out_channels",
    "encoder_block_out_channels",
    "decoder_block_out_channels",
    "down_block_types",
    "channel_mult",
)
"""Fields that list blocks, each of which has the layers of the fields above."""


def check_fields(values: Mapping[str, Any], of: str, kind: Kind, where: Path | str) -> None:
    """Check the configuration of one part of a pipeline.

    Args:
        values: the fields and their values, of a file or of a part in memory.
        of: the name of the part's class in diffusers. Parts of other libraries are not checked.
        kind: the kind of the pipeline.
        where: the file, for the message.

    Raises:
        DapError: a field has a value that dap neither follows nor may ignore, or the class of the part is not supported.
    """
    of = newer(of, values)
    if of.endswith("Scheduler"):
        table, indifferent = _scheduler(values, of, kind, where), OWN_WAY
    elif is_autoencoder(of) or of in NETWORKS:
        if of not in NETWORKS or (of in QUANTISED and kind.name != "ldm"):
            raise DapError(f"{shown(where)}: the autoencoder is {of}; {' and '.join(AUTOENCODERS)} are supported.")
        table, indifferent = BY_KIND.get(kind.name, {}).get(of, NETWORKS[of]), frozenset[str]()
    else:
        return
    defaults = _defaults(of)
    for name, value in values.items():
        if name.startswith("_") or (name in indifferent and name not in table):
            continue
        if name not in table:
            if value in SWITCHED_OFF or (name in defaults and value == defaults[name]):
                continue
            raise DapError(
                f"{shown(where)}: {shown(name)} is {_short(value)}, and dap does not know what this field decides. "
                "Remove it if the weights were trained without it."
            )
        if problem := _problem(table[name], value):
            raise DapError(f"{shown(where)}: {name} is {_short(value)}; {problem}. {WAYS_OUT.get(name, '')}".rstrip())
    _together(values, of, kind, where)


def _scheduler(values: Mapping[str, Any], of: str, kind: Kind, where: Path | str) -> Table:
    if of == "LCMScheduler" and kind.few:
        return CONSISTENT
    flow = of in FLOWS or (of in BOTH and values.get("use_flow_sigmas") is True)
    if kind.levels or kind.shifted:
        own = SHIFTING if kind.shifted else ["EDMEulerScheduler"]
        if of in own:
            return SHIFTED if kind.shifted else NOISE_LEVELS
        raise DapError(
            f"{shown(where)}: the scheduler is {of}, but {kind.title} has noise levels of its own; save the pipeline with its "
            f"{own[0]}."
        )
    if of not in (*PLAIN, *BOTH, *FLOWS):
        known = ", ".join(FLOWS if kind.flow else ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler"))
        raise DapError(
            f"{shown(where)}: the scheduler is {of}, whose noise levels dap cannot read. Save the pipeline with the "
            f"scheduler that its weights were trained with, such as {known}."
        )
    if kind.flow and not flow:
        raise DapError(
            f"{shown(where)}: {of} has no flow's noise levels, but {kind.title} is a flow. Use "
            "FlowMatchEulerDiscreteScheduler, or set use_flow_sigmas to true and prediction_type to flow_prediction there."
        )
    if flow and not kind.flow:
        raise DapError(
            f"{shown(where)}: {of} has the noise levels of a flow, but dap samples this kind of pipeline with betas. "
            "If the weights are a SiT, give dap convert their authors' file; else save the pipeline with a DDIMScheduler."
        )
    if not flow:
        return {**BETAS, **PIXEL_BETAS} if kind.pixels else BETAS
    # A scheduler of both families has betas too, which it does not use on a flow.
    unused = dict.fromkeys(("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"), Any)
    return FLOW if of in FLOWS else {**unused, **FLOW}


def _together(values: Mapping[str, Any], of: str, kind: Kind, where: Path | str) -> None:
    """What two fields say together, and what one says to a kind of pipeline."""
    _check_depth(values, where)
    side = values.get("sample_size")
    if (
        of in ("UNet2DConditionModel", "UNet2DModel")
        and isinstance(side, (list, tuple))
        and (len(side) != 2 or side[0] != side[1])
    ):
        raise DapError(
            f"{shown(where)}: sample_size is {_short(side)}; dap makes square images. {WAYS_OUT['sample_size']}"
        )
    betas, steps = values.get("trained_betas"), values.get("num_train_timesteps", 1000)
    if betas and not kind.flow and len(betas) != steps:
        raise DapError(f"{shown(where)}: there are {len(betas)} trained_betas but num_train_timesteps is {steps}.")
    start, end = values.get("beta_start"), values.get("beta_end")
    if kind.levels and values.get("sigma_min", 0) >= values.get("sigma_max", 1e9):
        raise DapError(
            f"{shown(where)}: sigma_min is {values['sigma_min']} and sigma_max {values['sigma_max']}; levels rise."
        )
    if start is not None and end is not None and not kind.flow and start > end:
        raise DapError(f"{shown(where)}: beta_start is {start} and beta_end is {end}; betas rise.")
    if of == "AutoencoderKL" and not kind.flow and values.get("shift_factor"):
        raise DapError(f"{shown(where)}: shift_factor is {_short(values['shift_factor'])}; {WAYS_OUT['shift_factor']}")
    for name in ("latents_mean", "latents_std"):
        if (said := values.get(name)) is None:
            continue
        if not kind.standardised:
            raise DapError(
                f"{shown(where)}: {name} is {_short(said)}, and diffusers does not standardise the latents of {kind.title}; set "
                "it to null there."
            )
        if len(said) != (channels := values.get("latent_channels", values.get("z_dim"))):
            raise DapError(f"{shown(where)}: {name} has {len(said)} numbers for {channels} latent channels.")
    if values.get("use_flow_sigmas") and values.get("prediction_type") != "flow_prediction":
        raise DapError(
            f"{shown(where)}: prediction_type is {_short(values.get('prediction_type'))}; with use_flow_sigmas it should be "
            "flow_prediction, or diffusers reads the velocity as something else."
        )


def _check_depth(values: Mapping[str, Any], where: Path | str) -> None:
    """Refuse a network of so many layers that only making them would take minutes, before it is compared with its weights."""
    asked = 1
    for names in DEPTHS:
        asked *= max((_most(values.get(name)) for name in names), default=1)
    asked *= max((len(said) for name in BLOCKS if isinstance(said := values.get(name), (list, tuple))), default=1)
    if asked > DEEPEST:
        told = ", ".join(f"{n} {_short(values[n])}" for n in (*sum(DEPTHS, ()), *BLOCKS) if _most(values.get(n)) > 1)
        raise DapError(
            f"{shown(where)} asks for about {asked:,} layers, and no network has more than {DEEPEST} ({told}). Fetch or save "
            "the file anew."
        )


def _most(value: Any) -> int:
    """The largest number in a field that holds one number or lists of numbers; 1 where there is none."""
    if isinstance(value, (list, tuple)):
        return max(map(_most, value), default=1)
    return max(1, value) if isinstance(value, int) else 1


def parts_of(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The parts that a `model_index.json` names: the folder of each -> its library and class. Parts that the pipeline goes
    without, [null, null], are left out. A part that is no pair has no library and no class, ("", "")."""
    lists = {part: said for part, said in index.items() if isinstance(said, list) and not part.startswith("_")}
    return {
        part: (str(said[0]), str(said[1])) if len(said) == 2 else ("", "")
        for part, said in lists.items()
        if said != [None, None]
    }


def place_of(folder: Path, part: str) -> Path:
    """The folder of a part's files. The first pipelines of pixels on the hub (google/ddpm-cifar10-32) keep the files of all
    their parts beside `model_index.json`, and diffusers reads them there."""
    inside = folder / part
    return folder if part in ("unet", "scheduler") and not inside.exists() and _at_the_root(folder) else inside


def _at_the_root(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.json", "scheduler_config.json"))


def check_folder(folder: Path, index: Mapping[str, Any]) -> None:
    """Check all configuration files of a pipeline's folder, before diffusers reads them.

    Args:
        folder: the folder.
        index: its `model_index.json`.

    Raises:
        DapError: a file is no JSON object, or `check_fields` refuses a field.
    """
    kind = KINDS.get(str(index.get("_class_name")))
    for part, (library, of) in parts_of(index).items():
        for name in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
            if (file := place_of(folder, part) / name).is_file() and _belongs(name, part, file, folder):
                # diffusers itself writes this number, which JSON does not have, for a field that is indifferent here.
                text = re.sub(r'("lambda_min_clipped"\s*:\s*)-Infinity', r"\1null", read_text(file))
                # transformers writes 10**30 for a tokenizer that has no longest prompt.
                text = re.sub(r'("model_max_length"\s*:\s*)1\d{18,30}\b', r"\g<1>1e30", text)
                values = fitted(parse_json(text, file), dict[str, Any], file, text)
                if kind and library == "diffusers":
                    check_fields(values, of, kind, file)
                elif library == "transformers":
                    check_text(values, file)


def _belongs(name: str, part: str, file: Path, folder: Path) -> bool:
    """Whether a configuration file is that of a part. Beside `model_index.json` lie the files of several parts."""
    return file.parent != folder or (name == "scheduler_config.json") == (part == "scheduler")


def check_pipeline(pipe: Any, kind: Kind, folder: Path | None) -> None:
    """Check the configuration of a pipeline in memory.

    Raises:
        DapError: `check_fields` refuses a field.
    """
    for part, network in pipe.components.items():
        config = getattr(network, "config", None)
        if isinstance(config, Mapping):
            name = "scheduler_config.json" if part == "scheduler" else "config.json"
            where = f"the {name} of the {part}" if folder is None else folder / part / name
            check_fields(config, type(network).__name__, kind, where)


def check_text(values: Mapping[str, Any], where: Path) -> None:
    """Check the sizes of an encoder or tokenizer of transformers. That library follows all other fields, as for diffusers.

    Raises:
        DapError: a size is none, there are too many layers, or the package is missing that reads the vocabulary.
    """
    _check_depth(values, where)
    if where.name == "tokenizer_config.json" and not (where.parent / "tokenizer.json").is_file():
        pieces = sorted(where.parent.glob("*.model"))
        if pieces and find_spec("sentencepiece") is None:
            raise DapError(
                f"{shown(where.parent)} has its vocabulary in {pieces[0].name}, and the package sentencepiece that reads it is "
                "not installed: pip install sentencepiece protobuf. Or put the tokenizer.json of this tokenizer beside it."
            )
    for name, value in values.items():
        if name in TEXT and (problem := _problem(TEXT[name], value)):
            raise DapError(f"{shown(where)}: {name} is {_short(value)}; {problem}.")
        if name == "model_max_length" and not (isinstance(value, (int, float)) and value >= 3):
            raise DapError(f"{shown(where)}: {name} is {_short(value)}; it should be a whole number, such as 77.")


def _problem(wanted: Any, value: Any) -> str | None:
    """What is wrong with the value of a field, or None."""
    if wanted is Any:
        return None
    try:
        _adapter(wanted).validate_python(value)
    except ValidationError as error:
        if wanted is Off:
            return "it should be switched off, null or false"
        found = error.errors(include_url=False)[0]
        if found["type"] == "none_required":
            return "it should be null"
        if found["type"] == "literal_error":
            return f"it should be {found.get('ctx', {}).get('expected')}"
        return reason(found)
    return None


_adapter = cache(partial(TypeAdapter[Any], config=ConfigDict(allow_inf_nan=False)))

_NO_MATTER = frozenset(["architectures", "dtype", "force_upcast", "torch_dtype", "transformers_version"])
"""Fields that decide no prediction: who wrote the file, and the number format, which the weights themselves show."""


def deciding(network: Any) -> dict[str, Any]:
    """The fields of a network's configuration that decide what its weights compute, as JSON values.

    A field that has its default is left out, so that a later version with more fields says the same of old weights.

    Args:
        network: a network of diffusers or transformers. Any other has no such fields.
    """
    config: Any = getattr(network, "config", None)
    if isinstance(config, Mapping):
        values = _plain(dict(config))
        defaults = _plain(_defaults(type(network).__name__))
        values = {name: value for name, value in values.items() if name in defaults and defaults[name] != value}
    else:
        values = _plain(config.to_diff_dict()) if hasattr(config, "to_diff_dict") else {}
    return {name: value for name, value in values.items() if not name.startswith("_") and name not in _NO_MATTER}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values, sort_keys=True, default=str))


@cache
def _defaults(of: str) -> dict[str, Any]:
    import diffusers

    found = getattr(diffusers, of, None) or networks.find(of)
    parameters = inspect.signature(found.__init__).parameters if found is not None else {}
    return {name: parameter.default for name, parameter in parameters.items()}


_short = partial(brief, longest=60)
