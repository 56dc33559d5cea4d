"""What every node promises, read from the sources, so that no ComfyUI is needed."""

import ast
import json

import pytest

from .bare import ROOT
from .schemas import NODES, schemas

SCHEMAS = schemas()
INPUTS = {  # for ever: saved workflows name them
    "CLoRA_ConceptToken": "word kind template vectors start token_seed",
    "CLoRA_TrainStep": "model clip vae images concept steps learning_rate rank batch_size forgetting_weight "
    "training_seed preview_every museum recipe captions companions masks keep_every other_checkpoint",
    "CLoRA_LoadPictures": "folder files",
    "CLoRA_LoadMuseum": "model clip museum_name exhibits strength museum keep_apart",
    "CLoRA_SaveMuseum": "museum name overwrite replace",
    "CLoRA_EditMuseum": "museum edits other images",
    "CLoRA_MuseumReport": "model clip vae museum pictures everyday sampling_steps report_seed name",
    "CLoRA_Recipe": "method token_learning_rate accumulation clip_norm weight_decay schedule warmup flip min_snr_gamma "
    "precision checkpointing shuffle_tags keep_tokens tag_dropout caption_dropout caption_lines "
    "stop_when_learned token",
    "CLoRA_Companion": "concept images captions companions masks",
    "CLoRA_SortPictures": "images museum_name network",
    "CLoRA_StarterModel": "",
    "CLoRA_StarterPictures": "subject count picture_seed",
}
OUTPUTS = {
    "CLoRA_ConceptToken": "concept prompt",
    "CLoRA_TrainStep": "model clip museum loss preview",
    "CLoRA_LoadPictures": "images captions masks",
    "CLoRA_LoadMuseum": "model clip museum",
    "CLoRA_SaveMuseum": "",
    "CLoRA_EditMuseum": "museum",
    "CLoRA_MuseumReport": "exhibits overlap moved",
    "CLoRA_Recipe": "recipe",
    "CLoRA_Companion": "companions",
    "CLoRA_SortPictures": "text classes shares",
    "CLoRA_StarterModel": "model clip vae",
    "CLoRA_StarterPictures": "images captions",
}
LANGUAGES = ("zh", "ja")  # English stands in the schemas, which every frontend falls back to


def test_ids_of_nodes_inputs_and_outputs_are_unchanged():
    assert {id: " ".join(socket.id for socket in schema.inputs) for id, schema in SCHEMAS.items()} == INPUTS
    names = {
        id: " ".join(
            ast.literal_eval(socket.options.get("display_name", f"'{socket.id}'")) for socket in schema.outputs
        )
        for id, schema in SCHEMAS.items()
    }
    assert names == OUTPUTS


def test_every_node_is_in_the_list():
    (listed,) = (
        node.value
        for node in ast.parse((NODES / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "NODES"
    )
    assert isinstance(listed, ast.Tuple)
    assert sorted(map(ast.unparse, listed.elts)) == sorted(schema.name for schema in SCHEMAS.values())


@pytest.mark.parametrize("id", SCHEMAS)
def test_every_node_and_socket_is_explained(id: str):
    schema = SCHEMAS[id]
    assert len(schema.description) > 20 and len(schema.search_aliases) >= 3
    for socket in (*schema.inputs, *schema.outputs):
        assert len(socket.options.get("tooltip", "")) > 15, socket.id


@pytest.mark.parametrize("id", SCHEMAS)
def test_no_widget_is_called_seed(id: str):
    """The frontend changes every widget called seed, and everything would be trained again."""
    for socket in SCHEMAS[id].inputs:
        assert socket.id not in ("seed", "noise_seed") and "control_after_generate" not in socket.options


@pytest.mark.parametrize("id", SCHEMAS)
def test_ids_of_inputs_and_outputs_are_unique(id: str):
    ids = [socket.id for socket in (*SCHEMAS[id].inputs, *SCHEMAS[id].outputs)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("id", SCHEMAS)
def test_every_widget_has_a_default_and_numbers_have_limits(id: str):
    for socket in SCHEMAS[id].inputs:
        if socket.kind in ("io.Int", "io.Float"):
            assert {"default", "min", "max"} <= set(socket.options), socket.id
        if socket.kind in ("io.String", "io.Boolean"):
            assert "default" in socket.options, socket.id


def test_every_node_has_a_help_page_that_names_its_inputs_and_no_page_is_left_over():
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "web/docs").glob("*.md")}
    assert set(pages) == set(SCHEMAS)
    for id, schema in SCHEMAS.items():
        assert pages[id].startswith(f"# {schema.display_name}\n")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated(language: str):
    translated = json.loads((ROOT / f"locales/{language}/nodeDefs.json").read_text(encoding="utf-8"))
    assert set(translated) == set(SCHEMAS)
    for id, schema in SCHEMAS.items():
        entry = translated[id]
        assert entry["display_name"] and entry["description"]
        assert list(entry.get("inputs", {})) == [socket.id for socket in schema.inputs]
        assert list(entry.get("outputs", {})) == [str(place) for place in range(len(schema.outputs))]
        for text in (*entry.get("inputs", {}).values(), *entry.get("outputs", {}).values()):
            assert text["name"] and text["tooltip"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_contain_no_placeholders_of_the_frontend(language: str):
    """Its messages take {name}, @:key and a|b for more than text; only '{' in quotes is a brace."""
    text = (ROOT / f"locales/{language}/nodeDefs.json").read_text(encoding="utf-8").replace("{'{word}'}", "")
    values = json.loads(text)

    def check(value: object) -> None:
        if isinstance(value, dict):
            for part in value.values():
                check(part)
        else:
            assert not set("{}@|") & set(str(value)), value

    check(values)


@pytest.mark.parametrize("language", LANGUAGES)
def test_tooltips_are_not_left_in_english(language: str):
    translated = json.loads((ROOT / f"locales/{language}/nodeDefs.json").read_text(encoding="utf-8"))
    for entry in translated.values():
        texts = [
            entry["description"],
            *(text["tooltip"] for part in ("inputs", "outputs") for text in entry.get(part, {}).values()),
        ]
        assert not [text for text in texts if text.isascii()]
