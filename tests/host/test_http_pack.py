"""The pack as ComfyUI lists it: nodes, help pages, translations, examples."""

import re

import pytest

from .finding import ROOT
from .server import Server

IDS = (
    *("CLoRA_ConceptToken", "CLoRA_TrainStep", "CLoRA_LoadMuseum", "CLoRA_SaveMuseum", "CLoRA_Recipe"),
    *("CLoRA_EditMuseum", "CLoRA_MuseumReport", "CLoRA_Companion", "CLoRA_StarterModel", "CLoRA_StarterPictures"),
    *("CLoRA_SortPictures", "CLoRA_LoadPictures"),
)


@pytest.fixture(scope="module")
def listed(server: Server):
    """What ComfyUI tells its frontend of the pack's nodes."""
    return {name: entry for name, entry in server.get("/object_info").items() if name.startswith("CLoRA_")}


def test_all_nodes_are_listed_and_no_others(listed):
    assert set(listed) == set(IDS)


def explained(node) -> dict[str, dict]:
    """The options of every input that people see."""
    inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    return {id: options for id, (_, options) in inputs.items()}


@pytest.mark.parametrize("name", IDS)
def test_every_input_and_output_has_a_tooltip(listed, name: str):
    node = listed[name]
    assert node["category"] == "C-LoRA" and node["display_name"] and len(node["description"]) > 20
    assert node.get("search_aliases", ["unknown to older ComfyUIs"])
    for id, options in explained(node).items():
        assert len(options.get("tooltip", "")) > 15, id
    assert all(tooltip for tooltip in node["output_tooltips"])


@pytest.mark.parametrize("name", IDS)
def test_no_widget_is_called_seed(listed, name: str):
    """The frontend changes every widget called seed, and everything would be trained again."""
    for id, options in explained(listed[name]).items():
        assert id not in ("seed", "noise_seed") and not options.get("control_after_generate")


@pytest.mark.parametrize("name", IDS)
def test_every_node_has_a_help_page(server: Server, name: str):
    assert server.read(f"/extensions/C-LoRA/docs/{name}.md").decode().startswith("# ")


def test_pack_loads_quickly_and_without_errors(server: Server):
    log = server.log.read_text(errors="replace")
    seconds, failed = re.findall(r"([\d.]+) seconds( \(IMPORT FAILED\))?: \S*custom_nodes/C-LoRA", log)[0]
    assert not failed and float(seconds) <= 0.5, log  # said to a tenth, on a machine that is busy


def test_translations_are_served(server: Server):
    translations = server.get("/i18n")
    for language in ("zh", "ja"):  # English is what the nodes themselves say
        assert set(IDS) <= set(translations[language]["nodeDefs"])


def test_example_workflows_are_offered(server: Server):
    offered = server.get("/workflow_templates")["C-LoRA"]
    assert set(offered) == {path.stem for path in (ROOT / "example_workflows").glob("*.json")}
