"""hf://owner/name: what huggingface_hub itself does with a Hub on the loopback interface."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_hub
import jax
import numpy as np
import pytest
import tiny_generator

from drifting_jax.weights.networks import Network, load_network, save_network

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).parents[2]
READ = """
import json, sys
from drifting_jax.errors import UserError
from drifting_jax.weights import files
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = [True, str(files.fetch(name))]
    except UserError as error:
        found[name] = [False, str(error)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def networks():
    """Two generators, of the revisions main and v1."""
    params = [tiny_generator.random_params(seed) for seed in (0, 1)]
    return [
        Network("generator", tiny_generator.MODEL, {"params": params[i]}, step)
        for i, step in enumerate((7, 5))
    ]


@pytest.fixture(scope="module")
def revisions(networks, tmp_path_factory):
    found = {}
    for name, network in zip(("main", "v1"), networks, strict=True):
        folder = tmp_path_factory.mktemp(name) / "folder"
        save_network(folder, network, for_hub=True)
        found[name] = {path.name: path.read_bytes() for path in folder.iterdir()}
    found["main"] |= {"README.md": b"a card", "large.bin.zip": b"not asked for"}
    return found


def fetched(url, home, *names):
    """{name: path or UserError's text} of a process of its own, and its standard error."""
    found = subprocess.run(
        [sys.executable, "-c", READ, *names],
        cwd=ROOT,
        env=os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_ETAG_TIMEOUT": "2"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.fixture(scope="module")
def loaded(revisions, tmp_path_factory):
    """What was fetched with the Hub there, what it was asked for, and later without it."""
    home = tmp_path_factory.mktemp("home")
    names = ["hf://o/r", "hf://o/r@v1", "hf://o/r/model.safetensors"]
    wrong = ["hf://o/none", "hf://o/r@v2", "hf://o/r/none.pth", "hf://o/none/model.safetensors"]
    with fake_hub.serving("o/r", revisions) as hub:
        there = fetched(hub.url, home, *names, *wrong)
    later = fetched(hub.url, home, *names, "hf://o/other")
    return there, hub.asked, later


def test_a_repository_and_its_revisions_are_downloaded(loaded, networks):
    there, asked, _ = loaded
    for name, network in zip(("hf://o/r", "hf://o/r@v1"), networks, strict=True):
        fine, path = there[name]
        assert fine, path
        found = load_network(path, kind="generator")
        assert (found.step, found.model) == (network.step, network.model)
        jax.tree.map(np.testing.assert_array_equal, found.variables, network.variables)
    file = Path(there["hf://o/r/model.safetensors"][1])
    assert file.name == "model.safetensors" and file.with_name("config.json").is_file()
    got = {path.rpartition("/")[2] for method, path in asked if method == "GET"}
    assert {"config.json", "model.safetensors"} <= got
    assert not {"README.md", "large.bin.zip"} & got  # weights and their description alone


@pytest.mark.parametrize(
    "name, reason",
    [
        ("hf://o/none", "there is no such repository, or it is private"),
        ("hf://o/none/model.safetensors", "there is no such repository, or it is private"),
        ("hf://o/r@v2", "it has no branch, tag or commit of this name"),
        ("hf://o/r/none.pth", "the repository has no such file"),
    ],
)
def test_what_is_not_there_is_one_line(loaded, name, reason):
    fine, message = loaded[0][name]
    assert not fine and "\n" not in message
    assert message.startswith(f"cannot get {name} ({reason}): check the name"), message


def test_without_the_network_the_second_load_takes_what_is_there(loaded):
    there, _, later = loaded
    for name in ("hf://o/r", "hf://o/r@v1", "hf://o/r/model.safetensors"):
        assert later[name] == there[name]


def test_without_the_network_and_a_copy_it_is_one_line_that_says_what_to_do(loaded):
    assert loaded[2]["hf://o/other"] == [
        False,
        "cannot get hf://o/other (the Hub cannot be reached, and no copy is in the cache): check "
        "the name and the network, or download it elsewhere and give the folder",
    ]
