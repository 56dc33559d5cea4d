"""What the frontend does to a workflow file when Run is pressed: from its own form to the one of the API."""

from collections.abc import Mapping
from typing import Any

from .server import Prompt

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
UNSEEN = ("Note", "MarkdownNote")  # only there for people


def as_prompt(workflow: Mapping[str, Any], definitions: Mapping[str, Any]) -> Prompt:
    """definitions: what /object_info answers."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: Prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in UNSEEN:
            continue
        inputs = _widgets(node, definitions[node["type"]])
        for entry in node["inputs"]:
            if entry["link"] is not None:
                inputs[entry["name"]] = sources[entry["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def _widgets(node: Mapping[str, Any], definition: Mapping[str, Any]) -> dict[str, Any]:
    """Each widget by name. The file has their values alone, in the order of the definition."""
    values = list(node.get("widgets_values", []))
    inputs = {}
    for required in ("required", "optional"):
        for name, (kind, *options) in definition["input"].get(required, {}).items():
            if isinstance(kind, list) or kind in WIDGETS:
                inputs[name] = values.pop(0)
                beside = (
                    any(options[0].get(key) for key in ("control_after_generate", "image_upload")) if options else False
                )
                if name in ("seed", "noise_seed") or beside:
                    values.pop(0)  # what the button beside it does: "fixed", "image"
    assert not values, f"{node['type']} has more values than widgets: {values}"
    return inputs
