"""Sets of earlier versions, whose records tell less, go on where nothing that they tell differs, or are refused in a sentence."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from dap.base.errors import DapError
from dap.data.sets.differences import OBJECTS_RECORD, RECORD
from dap.guidance import Energy
from dap.verbs.distill import distill
from dap.verbs.options import Machine


class Net(nn.Linear):
    pass


class Given(Energy):
    def __init__(self, net):
        self.net = net

    def __call__(self, state):
        return state.x.flatten(1).sum(1)


def given(weight):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Net(1, 1)
    made.weight.data.fill_(weight)
    return Given(made)


@pytest.fixture
def asked(colours, pipeline_folder):
    how = {"method": "vanilla", "ipc": 1, "steps": 2, "data": str(colours), "machine": Machine(device="cpu")}
    return {**how, "backbone": str(pipeline_folder)}


def as_written(folder, **other):
    """inputs.json as version 3 wrote it: other hashes of code and of the parts of networks."""
    file = folder / "inputs.json"
    told = json.loads(file.read_text())
    assert told[OBJECTS_RECORD] == RECORD == 4
    said = told["objects"]["guidance"]
    for one in (said, said["values"]["net"]):
        one["code"] = dict.fromkeys(one["code"], "0" * 64)
    said["values"]["net"]["parts"] = "0" * 64
    file.write_text(json.dumps({**told, OBJECTS_RECORD: 3, **other}))
    return file.read_text()


def test_a_set_of_version_3_goes_on_with_the_same_network_alone(asked, tmp_path):
    made = distill(out=tmp_path / "a", guidance=given(1), **asked)
    (made.path / made.records[-1]["path"]).unlink()
    written = as_written(made.path)
    with pytest.raises(DapError, match="objects.guidance.values.net.weights"):
        distill(out=tmp_path / "a", guidance=given(2), **asked)
    assert not distill(out=tmp_path / "a", guidance=given(1), **asked).missing()
    assert json.loads((made.path / "inputs.json").read_text()) == json.loads(written)


def test_another_fingerprint_of_code_of_the_users_is_explained(asked, tmp_path):
    made = distill(out=tmp_path / "a", guidance=given(1), **asked)
    as_written(made.path, weights="0" * 64)
    with pytest.raises(DapError, match="begun by a version that knew them by their files and weights alone"):
        distill(out=tmp_path / "a", guidance=given(1), **asked)
