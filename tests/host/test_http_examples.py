"""The example workflows: valid for the host that runs, and those of the starter model run to their end, shortened."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from .finding import ROOT
from .server import Run, Server
from .workflow import as_prompt

FOLDER = ROOT / "example_workflows"
STARTER = ("1-three-concepts", "2-load-a-museum", "3-add-a-concept", "4-two-concepts", "5-report", "6-styles")
PARTS = ("9-own-pictures-anima", "10-own-pictures-qwen-image", "11-own-pictures-flux", "12-own-pictures-z-image")
OWN = ("7-own-pictures-sd15", "8-own-pictures-sdxl", *PARTS)
SHORT = {  # what is changed, so that they take seconds
    "CLoRA_TrainStep": {"steps": 3, "batch_size": 4, "preview_every": 0},
    "KSampler": {"steps": 2},
    "CLoRA_MuseumReport": {"pictures": 1, "everyday": 1, "sampling_steps": 1},
}


def workflow(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def definitions(server: Server) -> Mapping[str, Any]:
    return server.get("/object_info")


@pytest.fixture(scope="module")
def runs(server: Server, definitions: Mapping[str, Any]) -> dict[str, tuple[dict[str, Any], Run]]:
    """Every workflow of the starter model, run in the order in which a newcomer would."""
    done = {}
    for name in STARTER:
        prompt = as_prompt(workflow(name), definitions)
        for node in prompt.values():
            node["inputs"] |= SHORT.get(node["class_type"], {})
        done[name] = prompt, server.run(prompt)
    return done


def test_every_workflow_is_tested():
    names = {path.stem for path in FOLDER.glob("*.json")}
    assert names == {*STARTER, *OWN}


@pytest.mark.parametrize("name", (*STARTER, *OWN))
def test_workflow_fits_the_host(definitions: Mapping[str, Any], name: str):
    graph = workflow(name)
    by_id = {node["id"]: node for node in graph["nodes"]}
    for _, source, slot, _, _, kind in graph["links"]:
        assert definitions[by_id[source]["type"]]["output"][slot] == kind
    for node in as_prompt(graph, definitions).values():
        known = definitions[node["class_type"]]["input"]
        required, optional = (known.get(part, {}).keys() for part in ("required", "optional"))
        assert required <= node["inputs"].keys() <= required | optional


@pytest.mark.parametrize("name", STARTER)
def test_starter_workflow_runs_to_its_end(runs: Mapping[str, Any], server: Server, name: str):
    prompt, run = runs[name]
    assert run.succeeded, run.error
    for id, node in prompt.items():
        if node["class_type"] in ("SaveImage", "PreviewImage"):
            pictures = server.pictures(run, id)
            assert pictures.ndim == 4 and pictures.std() > 1


def test_loaded_museum_shows_the_learned_concepts(runs: Mapping[str, Any], server: Server):
    def saved(name: str) -> np.ndarray:
        prompt, run = runs[name]
        return np.stack([server.pictures(run, id) for id, node in prompt.items() if node["class_type"] == "SaveImage"])

    taught, loaded = saved("1-three-concepts"), saved("2-load-a-museum")
    assert taught.shape == (3, 4, 256, 256, 3) and np.array_equal(taught, loaded)


def test_report_is_in_the_output_folder(runs: Mapping[str, Any], server: Server):
    (page,) = (server.folder / "output").glob("museum-report_*.html")
    assert "&lt;ada&gt;" in page.read_text(encoding="utf-8")
