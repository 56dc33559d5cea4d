"""The states of panels that are kept on disk."""

import json
import random
from pathlib import Path
from typing import Any

import folder_paths
import pytest
from clora_pack.nodes.host import panels

STATE = {
    "word": "<cat>",
    "steps": 8,
    "film": [{"step": 4, "picture": "data:,x"}],
    "curves": {"diffusion": [(1.5, 0.25)]},
}


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    restarted(monkeypatch)
    return tmp_path


def restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "_states", type(panels._states)())
    monkeypatch.setattr(panels, "_read", set())


def sent(monkeypatch: pytest.MonkeyPatch, state: dict[str, Any]) -> list[dict[str, Any]]:
    """What the page gets of a state that is sent and kept."""
    from server import PromptServer

    events: list[dict[str, Any]] = []
    server = type("Server", (), {"client_id": "", "send_sync": lambda _, kind, event, client: events.append(event)})()
    monkeypatch.setattr(PromptServer, "instance", server, raising=False)
    panel = panels.Panel()
    panel._owner = ("workflow", "5")
    panel.send(state)
    panel.keep()
    return events


def test_all_texts_of_a_state_are_printable(monkeypatch: pytest.MonkeyPatch):
    odd = "\x1b[2J\u202e\ud800<b>\u200b"
    (event,) = sent(monkeypatch, STATE | {"note": odd, "effect": {"moved": {odd: 0.5}}})
    assert event["state"]["note"] == r"\u001b[2J\u202e\ud800<b>\u200b" == next(iter(event["state"]["effect"]["moved"]))
    restarted(monkeypatch)
    assert panels.states("workflow") == {"5": event["state"]}


def test_damaged_file_is_ignored(monkeypatch: pytest.MonkeyPatch, user_folder: Path):
    sent(monkeypatch, STATE)
    (path,) = user_folder.rglob("*.json")
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        restarted(monkeypatch)
        assert panels.states("workflow") == {} and not panels.state_under("")
    path.write_text(json.dumps(["workflow", "5", {"word": "<cat>", "film": [{}]}]))
    restarted(monkeypatch)
    assert panels.states("workflow") == {}
    path.write_bytes(whole)
    restarted(monkeypatch)
    assert panels.states("workflow")["5"]["word"] == "<cat>"
