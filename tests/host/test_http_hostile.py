"""Prompts that no browser sends, but any program can: each gets a clear error, and the server continues."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from clora_core.museum.file import save_museum
from tests.museums import museum, with_inner

from .prompts import node, starter
from .server import Prompt, Run, Server

HALF, LONG, ESCAPE = "x\ud800y", "é" * 600_000, "<x>\x1b[2J\x9b1m\0"
VALUES: dict[str, Sequence[object]] = {
    "STRING": (HALF, LONG, ESCAPE),
    "COMBO": (HALF, ESCAPE, 5, {"__value__": [HALF, 1, 2]}),
    "FLOAT": (float("nan"),),
    "INT": (),  # ComfyUI converts and compares these
    "BOOLEAN": (),
    "link": ({"__value__": [HALF, 1, 2]},),
}
KINDS = {"base": "StarterModel", "pictures": "StarterPictures", "concept": "ConceptToken", "other": "ConceptToken"}
KINDS |= {"companion": "Companion", "recipe": "Recipe", "train": "TrainStep", "edit": "EditMuseum"}
KINDS |= {"load": "LoadMuseum", "save": "SaveMuseum", "report": "MuseumReport"}
GIVEN: dict[str, Any] = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "recipe": ["recipe", 0]}
GIVEN |= {"images": ["pictures", 0], "concept": ["concept", 0], "companions": ["companion", 0]}
GIVEN |= dict.fromkeys(("steps", "batch_size", "rank", "sampling_steps", "pictures", "everyday", "count"), 1)
OWN: dict[str, dict[str, Any]] = {
    "other": {"word": "<other>"},
    "companion": {"concept": ["other", 0], "companions": None},
    "edit": {"museum": ["train", 2], "images": None},
    "load": {"museum": ["edit", 0], "museum_name": "hostile.museum.safetensors"},
    "save": {"museum": ["load", 2]},
    "report": {"museum": ["load", 2]},
}


def graph(server: Server) -> tuple[Prompt, dict[str, dict[str, str]]]:
    """A node of every kind with all its inputs given, and their types: node → input → type."""
    prompt, types = {}, {}
    for name, kind in KINDS.items():
        told = server.get(f"/object_info/CLoRA_{kind}")[f"CLoRA_{kind}"]["input"]
        fields = {**told.get("required", {}), **told.get("optional", {})}
        usual = {key: more[0]["default"] for key, (_, *more) in fields.items() if more and "default" in more[0]}
        usual |= {key: value for key, value in GIVEN.items() if key in fields}
        prompt[name] = node(f"CLoRA_{kind}", **(usual | OWN.get(name, {})))
        found = {key: "COMBO" if isinstance(entry[0], list) else entry[0] for key, entry in fields.items()}
        types[name] = {key: kind if kind in VALUES else "link" for key, kind in found.items()}
    return prompt, types


def hostile(prompt: Prompt, types: dict[str, dict[str, str]]) -> Iterator[tuple[str, Prompt]]:
    """The prompt with one input of one node set to one value, for all of them."""
    for name, fields in types.items():
        for field, kind in fields.items():
            for value in VALUES[kind]:
                changed = {key: {**each, "inputs": dict(each["inputs"])} for key, each in prompt.items()}
                changed[name]["inputs"][field] = value
                if field == "museum_name":
                    del changed[name]["inputs"]["museum"]
                if name != "report":
                    del changed["report"]
                yield f"{name}.{field} = {value!r:.30}", changed


def assert_said(run: Run, what: str) -> None:
    """It failed with a short sentence of ours."""
    kind = run.messages.get("execution_error", {}).get("exception_type", "none")
    assert "clora_core.errors" in kind, (what, kind, run.error[:500])
    assert len(run.error) < 900 and run.error.isprintable(), (what, run.error)


def assert_refused(errors: Prompt, what: str) -> None:
    """It was not queued, with a short sentence of ours."""
    found = [error for each in errors.values() for error in each["errors"]]
    assert found and all(error["type"] == "custom_validation_failed" for error in found), (what, found)
    assert all(len(error["details"]) < 900 and error["details"].isprintable() for error in found), (what, found)


@pytest.fixture(autouse=True)
def _log_stays_clean(server: Server) -> Iterator[None]:
    yield
    assert not set(server.log.read_text(encoding="utf-8")) & set("\x1b\x9b\0")


def test_hostile_value_raises_a_clear_error_and_the_next_prompt_runs(server: Server):
    prompt, types = graph(server)
    queued = {}
    for what, changed in hostile(prompt, types):
        answer = server.post("/prompt", {"prompt": changed, "client_id": "tests"})
        if errors := answer.get("node_errors"):  # a recipe's name is looked up before anything runs
            assert_refused(errors, what)
        else:
            queued[what] = answer["prompt_id"]
    good = server.run(prompt)
    assert good.succeeded, good.error
    for what, prompt_id in queued.items():
        assert_said(server.finished(prompt_id), what)


def test_control_characters_of_a_museum_do_not_reach_the_terminal(server: Server):
    folder = server.folder / "models/loras/museums"
    folder.mkdir(parents=True, exist_ok=True)
    load = {"model": ["base", 0], "clip": ["base", 1], "exhibits": "", "strength": 1.0}
    for field in ("base", "dtype", "exhibits", ESCAPE):
        path = save_museum(museum(), folder / "header.museum.safetensors", overwrite=True)
        with_inner(path, lambda header, field=field: header.update({field: ESCAPE}))
        prompt = starter() | {"load": node("CLoRA_LoadMuseum", museum_name=path.name, **load)}
        prompt["out"] = node("CLoRA_SaveMuseum", museum=["load", 2], name="out", overwrite=True)
        assert_said(server.run(prompt), field)
