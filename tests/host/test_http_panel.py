"""What the panels request from the server: the header of a museum, and the state of a training."""

import base64
import io
import json
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace

import pytest
from PIL import Image

from clora_core.method.recipe import recipe_named
from clora_core.model.base import Fingerprint
from clora_core.museum.editing import renamed
from clora_core.museum.file import load_museum, save_museum
from clora_core.museum.museum import Museum
from tests.museums import exhibit, projections, put_together, taken_apart, with_inner
from tests.museums import museum as random_texts

from .events import Events
from .prompts import chain, loaded, node, saved_chain
from .server import Server

WORKFLOW = "5f0c6d5e-0000-4000-8000-000000000001"


def asked(server: Server, path: str, **headers: str) -> tuple[int, dict, dict]:
    """Status, headers and JSON, also of a refusal."""
    request = urllib.request.Request(f"http://{server.address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, dict(answer.headers), json.loads(answer.read() or "{}")
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), json.loads(error.read() or "{}")


def museum(server: Server, name: str, **headers: str) -> tuple[int, dict, dict]:
    return asked(server, f"/clora/museum?name={urllib.parse.quote(name)}", **headers)


@pytest.fixture(scope="module")
def saved(server: Server) -> str:
    assert server.run(saved_chain(2, "panel")).succeeded
    return "panel.museum.safetensors"


def test_museum_route_returns_the_header(server: Server, saved: str):
    status, headers, told = museum(server, saved)
    assert status == 200 and told["base"].startswith("starter")
    ada, bo = told["exhibits"]
    assert (ada["word"], ada["kind"], ada["prompt"]) == ("<ada>", "object", "a photo of <ada>")
    assert (bo["rank"], bo["steps"], bo["recipe"], bo["pictures"]) == (2, 4, "preservation", 6)
    assert ada["date"].startswith("20")
    kind, _, encoded = ada["thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (64, 64)  # of the first picture that was learned
    again, _, nothing = museum(server, saved, **{"If-None-Match": headers["ETag"]})
    assert again == 304 and not nothing
    path = server.folder / "models/loras/museums" / saved
    path.touch()
    assert museum(server, saved, **{"If-None-Match": headers["ETag"]})[0] == 304
    content = path.read_bytes()
    save_museum(renamed(load_museum(path), "<ada>", "<eve>"), path, overwrite=True)
    status, _, told = museum(server, saved, **{"If-None-Match": headers["ETag"]})
    path.write_bytes(content)
    assert status == 200 and told["exhibits"][0]["word"] == "<eve>"


@pytest.mark.parametrize(
    "name", ["", "none.safetensors", "../panel.museum.safetensors", "/etc/passwd", "..\\x", "x" * 100_0, "<b>\0"]
)
def test_only_listed_museums_are_read(server: Server, saved: str, name: str):
    status, _, told = museum(server, name)
    assert status == 404 and set(told) == {"error"}
    assert told["error"].startswith("There is no museum '") and len(told["error"]) < 300


def test_file_that_is_no_museum_returns_a_clear_error(server: Server):
    folder = server.folder / "models/loras/museums"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0no json!")
    status, _, told = museum(server, "broken.safetensors")
    assert status == 422 and told["error"].startswith("broken.safetensors")


def test_museum_route_names_the_exhibit_that_holds_the_weights(server: Server):
    """Of concepts that were learned together, the last one holds the weights of all."""
    on, recipe = projections("starter"), recipe_named("preservation", rank=4)
    exhibits = [exhibit(f"<{n}>", on if n == 2 else [], seed=n, architecture="starter", recipe=recipe) for n in (1, 2)]
    path = server.folder / "models/loras/museums/together.museum.safetensors"
    save_museum(Museum(Fingerprint("starter", "0" * 64), tuple(exhibits)), path, overwrite=True)
    _, _, told = museum(server, path.name)
    assert [(own["rank"], own["weights"]) for own in told["exhibits"]] == [(4, "<2>"), (4, "")]


def test_museum_route_shortens_texts_and_escapes_characters(server: Server):
    """Whatever its header says: prompts, names, facts and their keys."""
    path = save_museum(random_texts(), server.folder / "models/loras/museums/texts.museum.safetensors", overwrite=True)
    odd = "<b>\u202e\x1b[2J" + "\u200bx" * 2000

    def change(header: dict) -> None:
        header["base"]["digest"] = odd
        header["exhibits"][0] |= {
            "prompt": odd,
            "word": "<my-\u2066cat>",
            "facts": {odd: odd, "checkpoint": odd, "date": [odd]},
        }
        header["exhibits"][0]["recipe"]["method"] = odd

    with_inner(path, change)
    header, data = taken_apart(path)
    put_together(
        path, json.loads(json.dumps(header).replace("bundle_emb.<my-cat>", "bundle_emb.<my-\\u2066cat>")), data
    )
    status, _, told = museum(server, path.name)
    assert status == 200, told
    exhibit = told["exhibits"][0]
    assert exhibit["word"] == "<my-cat>" and exhibit["prompt"].startswith("<b>\\u001b[2Jxxx")
    assert exhibit["checkpoint"].startswith("<b>\\u202e\\u001b[2J\\u200bx")
    texts = [told["base"], *map(str, exhibit.values())]
    assert all(text.isprintable() and len(text) < 6000 for text in texts if not text.startswith("data:"))


def test_training_state_is_sent_during_training_and_remembered(server: Server):
    prompt = chain(2, preview_every=2, training_seed=31)
    prompt["out"] = node("PreviewImage", images=["train2", 4])
    with Events(server.address) as events:
        extra = {"extra_pnginfo": {"workflow": {"id": WORKFLOW}}}
        queued = server.post("/prompt", {"prompt": prompt, "client_id": "tests", "extra_data": extra})
        assert server.finished(queued["prompt_id"]).succeeded
        events.wait_for(
            lambda told: any(entry["node"] == "train2" and entry["state"].get("effect") for entry in learnings(told))
        )
        told = [entry["state"] for entry in learnings(events) if entry["node"] == "train2"]
    assert all(entry["workflow"] == WORKFLOW for entry in learnings(events))
    assert told[0]["word"] == "<bo>" and "word" not in told[-1]  # only what is new
    together = {name: value for entry in told for name, value in entry.items()}
    work = ["learning", "reading", "learning", "reading", "learning", "drawing", "comparing", "measuring", "learned"]
    assert [entry["where"] for entry in told if "where" in entry] == work

    remembered = server.get(f"/clora/learning?workflow={WORKFLOW}")
    assert set(remembered) == {"train1", "train2"}
    assert remembered["train2"] == together
    assert together["where"] == "learned" and together["step"] == together["steps"] == 4
    assert re.match(r"\d+ pictures · .*: fp32, .*4 steps, learning rate [\d.]+ \(word ", together["note"])
    assert set(together["curves"]) == {"diffusion", "context_preservation"}
    assert [frame.get("title", frame["step"]) for frame in together["film"]] == ["real", "untrained", 2, 4]
    assert [row["word"] for row in together["sheet"]] == ["<ada>", "<bo>"]
    earlier, new = together["sheet"]
    assert new["then"] == new["now"] and earlier["then"] != earlier["now"] and earlier["real"] != new["real"]
    assert set(together["effect"]["moved"]) == set(together["effect"]["overlap"]) == {"<ada>"}
    assert server.get("/clora/learning?workflow=another") == {} == server.get("/clora/learning")


def test_what_save_museum_said_does_not_stand_beside_its_error(server: Server):
    extra = {"extra_pnginfo": {"workflow": {"id": WORKFLOW}}}

    def run(seed: int) -> tuple[bool, str]:
        prompt = saved_chain(1, "stale", text="a photo of <ada>", training_seed=seed)
        queued = server.post("/prompt", {"prompt": prompt, "client_id": "tests", "extra_data": extra})
        succeeded = server.finished(queued["prompt_id"]).succeeded
        return succeeded, server.get(f"/clora/learning?workflow={WORKFLOW}")["save"]["text"]

    succeeded, text = run(33)
    assert succeeded and text.startswith("Saved ")
    assert run(34) == (False, ""), "another museum of that name, and overwrite is off"


def learnings(events: Events) -> list[dict]:
    return [message["data"] for message in events.messages if message["type"] == "clora.learning"]


def test_repeated_training_is_sent_as_kept_and_panels_survive_a_restart(server: Server):
    prompt = chain(1, preview_every=2, training_seed=32)
    prompt["out"] = node("PreviewImage", images=["train1", 4])
    extra = {"extra_pnginfo": {"workflow": {"id": WORKFLOW}}}

    def run() -> dict:
        queued = server.post("/prompt", {"prompt": prompt, "client_id": "tests", "extra_data": extra})
        assert server.finished(queued["prompt_id"]).succeeded
        return server.get(f"/clora/learning?workflow={WORKFLOW}")["train1"]

    learned = run()
    server.restart()
    assert server.get(f"/clora/learning?workflow={WORKFLOW}")["train1"] == learned
    assert run() == learned | {"where": "kept"}
    shutil.rmtree(server.results_folder)


def test_run_resumes_after_a_killed_server_with_its_curve_and_film(server: Server):
    prompt = chain(1, steps=5000, batch_size=1, preview_every=25, training_seed=33)
    prompt["out"] = node("PreviewImage", images=["train1", 4])
    extra = {"extra_pnginfo": {"workflow": {"id": "same", "extra": {"clora": "a mark"}}}}
    request = {"prompt": prompt, "client_id": "tests", "extra_data": extra}

    def state(workflow: str = "a%20mark") -> dict:
        return server.get(f"/clora/learning?workflow={workflow}").get("train1", {"step": 0, "film": []})

    server.post("/prompt", request)
    server.wait_for(lambda: state()["step"] > 60, 240, "no progress")
    assert server.process
    server.process.kill()
    server.process.wait()
    server.start()
    stopped = state()
    assert stopped["where"] == "stopped" and stopped["step"] % 50 == 0 < stopped["step"] and stopped["resumable"]
    assert stopped["film"] and stopped["curves"]["diffusion"][0][0] < 50
    assert state("same") == {"step": 0, "film": []}  # another copy of the workflow

    server.post("/prompt", request)
    server.wait_for(lambda: state()["step"] > stopped["step"], 240, "no progress")
    server.post("/interrupt")
    server.wait_for(lambda: state()["where"] == "stopped", 60, "it does not stop")
    further = state()
    assert further["resumed"] == stopped["step"] < further["step"] and further["film"][0] == stopped["film"][0]
    assert further["curves"]["diffusion"][0] == stopped["curves"]["diffusion"][0]
    shutil.rmtree(server.results_folder)


def test_page_gets_the_texts_of_its_own_workflow_only(server: Server):
    prompt = chain(1, steps=2, training_seed=34)
    prompt["save"] = node("CLoRA_SaveMuseum", museum=["train1", 2], name="said", overwrite=True)
    prompt["report"] = node(
        "CLoRA_MuseumReport",
        **{"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "museum": ["train1", 2], "name": "said"},
        **{"pictures": 1, "everyday": 1, "sampling_steps": 1, "report_seed": 0},
    )
    extra = {"extra_pnginfo": {"workflow": {"id": "texts"}}}
    with Events(server.address) as events:
        queued = server.post("/prompt", {"prompt": prompt, "client_id": "tests", "extra_data": extra})
        assert server.finished(queued["prompt_id"]).succeeded
        assert not events.texts  # ComfyUI shows them on any node with the same id
    told = server.get("/clora/learning?workflow=texts")
    assert told["save"]["text"] == "Saved models/loras/museums/said.museum.safetensors: <ada>"
    page = told["report"]["page"]
    assert told["report"]["text"].startswith(f"output/{page}: 1 exhibits · ")
    with urllib.request.urlopen(f"http://{server.address}/clora/report?name={page}", timeout=30) as answer:
        assert answer.headers["Content-Type"] == "text/html" and b"&lt;ada&gt;" in answer.read()
        assert answer.headers["Content-Security-Policy"].startswith("sandbox;")
    for name in ("../user/x.html", "none.html", "%00.html", "/etc/passwd", "..%2Fcustom_nodes%2FC-LoRA%2FREADME.md"):
        assert asked(server, f"/clora/report?name={name}")[0] == 404, name


def test_note_stays_until_the_node_runs_again_and_is_not_remembered(server: Server, saved: str):
    """Of a word without the exhibit that holds its weights, as of words that were learned together."""
    folder = server.folder / "models/loras/museums"
    whole = load_museum(folder / saved)
    first, second = whole.exhibits
    pair = replace(whole, exhibits=(replace(first, deltas={}), replace(second, recipe=first.recipe)))
    save_museum(pair, folder / "pair.museum.safetensors", overwrite=True)
    prompt = loaded("pair", "a photo of <ada>")
    prompt["load"]["inputs"]["exhibits"] = "<ada>"
    extra = {"extra_pnginfo": {"workflow": {"id": "note"}}}
    with Events(server.address) as events:
        queued = server.post("/prompt", {"prompt": prompt, "client_id": "tests", "extra_data": extra})
        assert server.finished(queued["prompt_id"]).succeeded
        events.wait_for(lambda events: any(entry["node"] == "load" for entry in learnings(events)))
    (note,) = [entry["state"] for entry in learnings(events) if entry["node"] == "load"]
    assert note["until_it_runs"] and "<ada> needs <bo> as well" in note["text"]
    assert server.get("/clora/learning?workflow=note") == {}
