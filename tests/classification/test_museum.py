"""Museum files of classes survive a round trip; damaged and other files are refused."""

import dataclasses
from pathlib import Path

import pytest
import torch

from clora_core.classification.classify import classified
from clora_core.classification.file import append_task, load_task_museum, save_task_museum
from clora_core.classification.heads import (
    head_rows,
)
from clora_core.classification.learn import TaskLearning
from clora_core.classification.museum import TaskMuseum, check_new, renamed_class, without_class
from clora_core.classification.vision import Vision
from clora_core.errors import BaseModelError, ConceptError, MuseumError, RecipeError
from clora_core.model.base import Fingerprint
from clora_core.model.low_rank import LowRank
from clora_core.model.projections import Projection
from clora_core.museum.file import load_museum
from tests.classification.tasks import NAMES, one_task, pictures, recipe, tensors, two_tasks


@pytest.fixture(scope="module")
def saved(vision: Vision, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save_task_museum(two_tasks(vision), tmp_path_factory.mktemp("m") / "m.safetensors").read_bytes()


def test_a_museum_is_loaded_bit_for_bit(vision: Vision, tmp_path: Path):
    museum = two_tasks(vision)
    path = save_task_museum(museum, tmp_path / "m.safetensors")
    back = load_task_museum(path)
    assert back.classes == museum.classes and back.base == museum.base
    assert all(torch.equal(one, other) for one, other in zip(tensors(museum), tensors(back), strict=True))
    assert back.tasks[1].recipe == museum.tasks[1].recipe
    assert torch.equal(back.tasks[1].drift, museum.tasks[1].drift)
    test = pictures(*NAMES, seed=2).pictures
    assert classified(vision, back, test) == classified(vision, museum, test)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_refused(vision: Vision, tmp_path: Path, seed: int, saved: bytes):
    content = bytearray(saved)
    place = int(torch.randint(8, len(content), (), generator=torch.Generator().manual_seed(seed)))
    content[place] ^= 1 << seed % 8
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(MuseumError):
        load_task_museum(tmp_path / "m.safetensors")


def test_a_museum_of_classes_is_refused_as_a_museum_of_concepts(vision: Vision, tmp_path: Path, saved: bytes):
    (tmp_path / "m.safetensors").write_bytes(saved)
    with pytest.raises(MuseumError, match=r"a museum of classes.*not a museum of concepts"):
        load_museum(tmp_path / "m.safetensors")


def test_classes_can_be_renamed_and_removed(vision: Vision):
    museum = two_tasks(vision, head="lda")
    fewer = without_class(renamed_class(museum, "red", "rot"), "green")
    assert fewer.classes == ("rot", "blue", "dark")
    assert torch.equal(head_rows(fewer, "linear"), head_rows(museum, "linear")[[0, 2, 3]])
    assert [verdict.classes[0] for verdict in classified(vision, fewer, pictures("red", seed=4).pictures)] == [
        "rot"
    ] * 6
    with pytest.raises(MuseumError, match="already has the class 'blue'"):
        renamed_class(museum, "red", "blue")
    with pytest.raises(MuseumError, match="no class 'gold'"):
        without_class(museum, "gold")
    with pytest.raises(ConceptError, match="already has the class 'green'"):
        TaskLearning(vision, museum, pictures("red", "green"), recipe())


def test_look_alike_names_are_one_class(vision: Vision):
    """é as one character or as two, spaces at the end, and characters that nobody sees."""
    museum = renamed_class(two_tasks(vision), "red", "caf\u00e9")
    for spelled in ("cafe\u0301", "caf\u00e9 ", "caf\u00e9\u200b"):
        with pytest.raises(ConceptError, match="already has the class"):
            check_new(museum, [spelled, "gold"])
        with pytest.raises(ConceptError, match="Two classes have the name"):
            check_new(two_tasks(vision), [spelled, "caf\u00e9"])
        assert without_class(museum, spelled).classes == ("green", "blue", "dark")
        assert renamed_class(museum, spelled, "tea").classes[0] == "tea"


def test_the_linear_head_needs_two_classes_a_task(vision: Vision):
    with pytest.raises(RecipeError, match="has only red"):
        TaskLearning(vision, without_class(two_tasks(vision), "red"), pictures("red"), recipe())
    TaskLearning(vision, without_class(two_tasks(vision), "red"), pictures("red"), recipe(head="lda"))


def test_a_museum_over_another_network_is_refused(vision: Vision):
    museum = dataclasses.replace(two_tasks(vision, "frozen"), base=Fingerprint("vision", "0" * 64))
    with pytest.raises(BaseModelError, match="was made for 'vision · 00000000'"):
        classified(vision, museum, pictures("red").pictures)


def test_wrong_shapes_are_refused_before_anything_is_computed(vision: Vision, tmp_path: Path):
    """The factors fit in a file; their product would not fit in memory."""
    museum = two_tasks(vision, "frozen")
    huge = Projection("layers.0.query", "query", (10**6, 10**6))
    oversized = dataclasses.replace(museum.tasks[0], deltas={huge: LowRank(torch.ones(10**6, 1), torch.ones(1, 10**6))})
    path = save_task_museum(dataclasses.replace(museum, tasks=(oversized,)), tmp_path / "m.safetensors")
    with pytest.raises(BaseModelError, match=r"no projection 'layers\.0\.query'"):
        classified(vision, load_task_museum(path), pictures("red").pictures)


def test_tasks_that_another_program_adds_meanwhile_are_kept(vision: Vision, tmp_path: Path):
    museum, path = two_tasks(vision, "frozen"), tmp_path / "m.safetensors"
    empty = TaskMuseum(vision.fingerprint)
    append_task(empty, one_task(vision, "frozen").tasks[0], path, base=vision)
    append_task(empty, museum.tasks[1], path, base=vision)  # learned before the file had the first task
    assert load_task_museum(path).classes == museum.classes
    with pytest.raises(MuseumError, match="twice"):
        append_task(empty, museum.tasks[1], path, base=vision)
    with pytest.raises(MuseumError):
        save_task_museum(museum, path)  # the file was not read before
    assert load_task_museum(path).classes == museum.classes


def test_a_deleted_museum_file_is_written_again(vision: Vision, tmp_path: Path):
    museum, path = two_tasks(vision, "frozen"), tmp_path / "m.safetensors"
    append_task(one_task(vision, "frozen"), museum.tasks[1], path, base=vision)
    assert load_task_museum(path).classes == museum.classes


def test_removing_a_class_reduces_the_scatter_by_its_share(vision: Vision):
    museum = two_tasks(vision, "frozen")
    fewer = without_class(museum, "red").tasks[0]
    torch.testing.assert_close(fewer.scatter, museum.tasks[0].scatter / 2)


def test_second_moments_are_stored_once_for_all_tasks(vision: Vision, tmp_path: Path):
    first, names, more = one_task(vision), NAMES[2:], 3
    second = TaskLearning(vision, first, pictures(*names, count=more), recipe()).run()
    museum = first.with_task(second)
    assert [len(task.inputs) for task in museum.tasks] == [0, 4]
    for layer, moment in museum.inputs().items():
        naive = (12 * first.tasks[0].inputs[layer] + 6 * second.inputs[layer]) / 18
        torch.testing.assert_close(moment, naive)
    apart = dataclasses.replace(museum, tasks=(*first.tasks, second))  # as earlier files have it
    for each in (museum, apart):
        path = save_task_museum(each, tmp_path / f"{len(each.tasks[0].inputs)}.safetensors")
        load_task_museum(path).check_over(vision)
        torch.testing.assert_close(dict(load_task_museum(path).inputs()), dict(museum.inputs()))
    assert (tmp_path / "0.safetensors").stat().st_size < (tmp_path / "4.safetensors").stat().st_size
