"""What the nodes' panels in the browser show: sent as it changes, remembered, and kept on disk over a restart.

Every text in a state is made printable here.

A state belongs to a node of a workflow. A workflow is identified by the mark that web/panels.js gives it when it is
opened, since ComfyUI's own id is the same in every copy; for other clients, by ComfyUI's id.
"""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.utils import get_executing_context

from ...clora_core.texts import printable_values
from ..log import log

CHANGED = "clora.learning"  # the event that web/panels.js listens to
MOST = 256  # states to remember; the oldest are forgotten
RUNNING = ("learning", "reading", "measuring", "drawing", "comparing")  # what a state says of a run that has not ended

State = Mapping[str, Any]
Owner = tuple[str, str]  # workflow, node
_states: OrderedDict[Owner, State] = OrderedDict()
_read: set[Path] = set()  # folders whose files are among the states


def states(workflow: str) -> dict[str, State]:
    """Node → state of its panel, for the nodes of a workflow that ran."""
    _read_files()
    return {node: state for (owner, node), state in list(_states.items()) if owner == workflow}


def state_under(key: str) -> State | None:
    """The newest state of the run with this key of all its inputs."""
    _read_files()
    return next((state for state in reversed(list(_states.values())) if state.get("key") == key), None)


class Panel:
    """The panel of the node that is running. Without a page that queued the run, it does nothing."""

    def __init__(self) -> None:
        context = get_executing_context()
        workflow = running_workflow()
        self._owner: Owner | None = (workflow, context.node_id) if context and workflow else None
        self._sent: State = {}

    def send(self, state: State, *, remembered: bool = True) -> None:
        """Show a state, plain JSON values. Only changed values are sent.

        remembered: whether pages that load later show it.
        """
        if self._owner is None:
            return
        from server import PromptServer

        state = printable_values(state)
        if remembered:
            _remember(self._owner, state)
        changes = {name: value for name, value in state.items() if self._sent.get(name, self) != value}
        workflow, node = self._owner
        event = {"workflow": workflow, "node": node, "first": not self._sent, "state": changes}
        PromptServer.instance.send_sync(CHANGED, event, PromptServer.instance.client_id)
        self._sent = dict(state)

    def clear_text(self) -> None:
        """Remove what the node said when it ran last, so that it does not stand beside an error."""
        if self._owner and _states.get(self._owner, {}).get("text"):
            self.send({"text": "", "page": ""})
            self.keep()

    def keep(self) -> None:
        """Write the last state to disk. A disk that refuses costs only the panel after a restart."""
        if self._owner is None:
            return
        path = _path(self._owner)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".new")
            entries = [*self._owner, self._sent]
            beside.write_text(json.dumps([*entries, _digest(entries)]), encoding="utf-8")
            os.replace(beside, path)
        except OSError as error:
            log.warning("C-LoRA: the panel cannot be kept. %s", error)


def running_workflow() -> str:
    """The workflow of the node that is running; "" if no page queued it."""
    context = get_executing_context()
    if context is None:
        return ""
    from server import PromptServer  # missing if nodes run without ComfyUI's server

    queue = getattr(getattr(PromptServer, "instance", None), "prompt_queue", None)
    for item in list(getattr(queue, "currently_running", {}).values()):
        _, prompt_id, _, more, *_ = getattr(item, "queue_tuple", item)
        if prompt_id == context.prompt_id:
            return workflow_of(more.get("extra_pnginfo"))
    return ""


def workflow_of(extra_pnginfo: object) -> str:
    """The id of the workflow that a page sends with a prompt; "" if it is missing."""
    workflow = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, dict) else None
    if not isinstance(workflow, dict):
        return ""
    extra = workflow.get("extra")
    return str((extra.get("clora") if isinstance(extra, dict) else "") or workflow.get("id") or "")


def _remember(owner: Owner, state: State) -> None:
    _states[owner] = state
    _states.move_to_end(owner)
    while len(_states) > MOST:
        oldest, _ = _states.popitem(last=False)
        with suppress(OSError):
            _path(oldest).unlink(missing_ok=True)


def _path(owner: Owner) -> Path:
    return _folder() / f"{_digest(owner)[:32]}.json"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _folder() -> Path:
    return Path(folder_paths.get_user_directory(), "__clora", "panels")


def _read_files() -> None:
    """Load the states of earlier processes, once, as older ones. Runs that had not ended stopped with their process."""
    folder = _folder()
    if folder in _read:
        return
    _read.add(folder)
    for owner, state in _files(folder):
        if owner not in _states:
            if state.get("where") in RUNNING:
                state |= {"where": "stopped", "seconds_left": None}
            _states[owner] = state
            _states.move_to_end(owner, last=False)


def _files(folder: Path) -> Iterator[tuple[Owner, dict[str, Any]]]:
    """From the newest to the oldest. Files that are not states, or are damaged, are left alone."""
    try:
        paths = sorted(folder.glob("*.json"), key=lambda path: -path.stat().st_mtime_ns)
    except OSError:
        return
    for path in paths[:MOST]:
        with suppress(OSError, ValueError, TypeError):
            *entries, digest = json.loads(path.read_text(encoding="utf-8"))
            if digest == _digest(entries):
                workflow, node, state = entries
                yield (workflow, node), state
