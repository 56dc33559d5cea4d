"""A Train Step that is stopped while it reads prompts, before its first step or after its last."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from clora_pack.nodes.actions.diary import Diary
from clora_pack.nodes.host.starter import load_starter

from .models import INTERRUPTED
from .test_nodes import FEW, forget, result_files, same_museum, train


@pytest.fixture(autouse=True)
def _own_results(own_results: Path) -> Iterator[None]:
    yield
    comfy.model_management.interrupt_current_processing(False)


@pytest.mark.parametrize(("last", "kept"), [(0, []), (FEW["steps"], ["state"])])
def test_cancel_stops_at_once_and_loses_no_step(
    nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, last: int, kept: list[str]
):
    with torch.inference_mode():
        models = load_starter()
    whole = train(nodes, models)
    forget()
    advance, told = Diary.advance, []

    def cancelled(self: Diary, status: str, done: int, of: int) -> None:
        advance(self, status, done, of)  # type: ignore[arg-type]
        if self.step == last:
            told.append((status, done))
            comfy.model_management.interrupt_current_processing()

    with monkeypatch.context() as patch:
        patch.setattr(Diary, "advance", cancelled)
        with pytest.raises(INTERRUPTED):
            train(nodes, models)
    assert told == [("reading", 1)]
    assert result_files() == kept
    again = train(nodes, models)
    assert again[3] == whole[3] and same_museum(again[2], whole[2])
