"""Pickles of NVIDIA's research code (EDM, EDM2), read without running anything from them.

Such a pickle holds the source code of its network and runs it when it is loaded by `pickle.load`. The reader here knows no
module: a name in the pickle stands either for one of four functions of this file that put tensors together, or for an empty
class. So the objects come out as shells that hold what the pickle says of them, and the tensors in the shells are the weights.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dap.base.errors import DapError, first_line

MOST = 10**6
"""The largest number of objects that are looked through for networks and tensors; a published file has a thousand."""


class Shell:
    """Stands for an object of any class: it takes whatever the pickle gives it, and does nothing with it.

    Attributes:
        state: what the pickle says of the object's attributes.
    """

    of: str = ""
    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what the class itself would take."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """An entry of a dictionary; a `dnnlib.EasyDict` is one."""

    def append(self, value: Any) -> None:
        """An entry of a list."""

    add = append

    def extend(self, values: Any) -> None:
        """Entries of a list."""


def _network(meta: Any) -> Shell:
    """For `torch_utils.persistence._reconstruct_persistent_obj`: a shell by the name and the attributes, without the source."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise pickle.UnpicklingError("an object of the authors' classes says no class")
    shell = Shell()
    shell.of, shell.state = meta["class_name"], meta.get("state")
    return shell


def _storage(data: Any) -> Any:
    """For `torch.storage._load_from_bytes`: the numbers of a tensor, by torch's weights-only path."""
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("the numbers of a tensor are no bytes")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """For `torch._utils._rebuild_tensor_v2`. torch refuses a size that is larger than the storage."""
    if not isinstance(storage, (torch.TypedStorage, torch.UntypedStorage)):
        raise pickle.UnpicklingError("a tensor has no numbers")
    dtype = storage.dtype if isinstance(storage, torch.TypedStorage) else torch.float32
    return torch.tensor([], dtype=dtype).set_(storage, offset, size, stride)  # pyright: ignore[reportArgumentType]


def _parameter(data: Any, *rest: Any) -> Any:
    """For `torch._utils._rebuild_parameter`."""
    return data


FUNCTIONS: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _network,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
"""What names in the pickle stand for. Any other name stands for an empty class."""


class _Reader(pickle._Unpickler):  # type: ignore[name-defined] # the Python form: its memory grows with the file alone
    def find_class(self, module: str, name: str, /) -> Any:
        known = FUNCTIONS.get((module, name))
        if known is None:
            return type("Named", (Shell,), {"of": f"{module}.{name}"})
        # A pickle can set attributes of what it names, so it is given a function of its own.
        return known if known is OrderedDict else lambda *args: known(*args)

    def persistent_load(self, pid: Any, /) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of the file")

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError("it refers to classes by numbers")


class _Bounded(io.BytesIO):
    """A file in memory that refuses to read more than it has, where a plain one would set memory aside for it first."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > len(self.getbuffer()) - self.tell():
            raise EOFError("the file ends too early")
        return super().read(size)


def is_plain(path: Path) -> bool:
    """Whether a file is a pickle alone, and not one of torch's files, which hold the numbers beside it."""
    with open(path, "rb") as file:
        head = file.read(4)
    return len(head) == 4 and head[0] == 0x80 and 2 <= head[1] <= 5 and head[2:] != b"\x8a\n"


def read_persistent(path: Path) -> dict[str, Any]:
    """What such a file holds of its network with averaged weights.

    Returns:
        The tensors by name as "state_dict", the class of the outermost network as "preconditioning", and its `sigma_data`.

    Raises:
        DapError: the file is damaged, or it holds no network.
    """
    try:
        with open(path, "rb") as file:
            found = _Reader(_Bounded(file.read())).load()
        held = found.get("ema") if isinstance(found, dict) else found
        state = dict(_tensors(held))
        attributes = held.state if isinstance(held, Shell) and isinstance(held.state, dict) else {}
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # on a damaged file the reader raises almost any error
        raise DapError(
            f"{path} is not a pickle of EDM or EDM2 that can be read without running code from it: "
            f"{first_line(error).rstrip('. ')}. Fetch it anew; dap never runs code from a pickle."
        ) from error
    if not state:
        raise DapError(
            f"{path} holds no network of EDM or EDM2 under 'ema'. dap never runs code from a pickle; save the state dict alone, "
            "with torch.save(model.state_dict(), FILE), where the file comes from."
        )
    data = attributes.get("sigma_data")
    return {
        "state_dict": state,
        "preconditioning": getattr(held, "of", ""),
        "sigma_data": data if isinstance(data, float) else 0.5,
    }


def _tensors(held: Any) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a shell of a network and of the networks in it, by the names that torch gives them."""
    waiting, seen = [("", held)], 0
    while waiting:
        prefix, shell = waiting.pop()
        seen += 1
        if seen > MOST:
            raise pickle.UnpicklingError("it holds more networks than any file of theirs.")
        state = shell.state if isinstance(shell, Shell) else None
        if not isinstance(state, dict):
            continue
        for kind in ("_parameters", "_buffers"):
            table = state.get(kind)
            for name, value in table.items() if isinstance(table, dict) else ():
                if isinstance(value, Tensor):
                    yield f"{prefix}{name}", value
        inner = state.get("_modules")
        waiting += [(f"{prefix}{name}.", one) for name, one in inner.items()] if isinstance(inner, dict) else []
        if len(prefix) > 1000:
            raise pickle.UnpicklingError("its networks hold each other.")
