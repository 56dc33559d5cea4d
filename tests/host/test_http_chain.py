"""The chain over HTTP, in a ComfyUI started from its own main.py, with stock nodes around it."""

import re
import shutil

import numpy as np
import torch
from clora_pack.clora_core.method.draft import AUTO
from clora_pack.clora_core.method.recipe import RECIPES
from clora_pack.clora_core.museum.file import read_header
from safetensors.torch import load_file

from .events import Events
from .prompts import PROMPT, chain, concept, loaded, node, saved_chain, shown, starter
from .server import Prompt, Server


def test_three_chained_concepts_are_learned_saved_and_loaded(server: Server):
    run = server.run(saved_chain(3, "three"))
    assert run.succeeded, run.error
    path = server.folder / "models/loras/museums/three.museum.safetensors"
    (text,) = run.history["outputs"]["save"]["text"]
    assert text.replace("\u2060", "") == f"Saved {path}: <ada>, <bo>, <cleo>"  # without the page's joiners
    again = server.run(loaded("three"))
    assert again.succeeded, again.error
    assert np.array_equal(server.pictures(again, "show"), server.pictures(run, "show"))
    assert "load" in server.run(loaded("three", PROMPT + " again")).cached
    without = server.run(starter() | shown(PROMPT, ["base", 0], ["base", 1]))
    assert not np.array_equal(server.pictures(without, "show"), server.pictures(run, "show"))


def test_baselines_are_not_listed_but_still_run(server: Server):
    fields = server.get("/object_info/CLoRA_Recipe")["CLoRA_Recipe"]["input"]["required"]
    kind, more = fields["method"]
    listed = kind if isinstance(kind, list) else more["options"]
    assert set(listed) == {AUTO, *RECIPES}
    numbers = {name: default for name, (_, rest) in fields.items() if (default := rest.get("default")) is not None}
    prompt = saved_chain(1, "baseline", text="a photo of <ada>")
    prompt["recipe"] = node("CLoRA_Recipe", **numbers | {"method": "c-lora-rows"})
    prompt["train1"]["inputs"] |= {"recipe": ["recipe", 0], "forgetting_weight": 1.0}
    run = server.run(prompt)
    assert run.succeeded, run.error
    (exhibit,) = read_header(server.folder / "models/loras/museums/baseline.museum.safetensors").exhibits
    assert exhibit.recipe.method == "c-lora-rows" and [r.weight for r in exhibit.recipe.regularizers] == [100.0]
    prompt["recipe"]["inputs"]["method"] = "clora"
    answer = server.post("/prompt", {"prompt": prompt})
    assert "There is no recipe 'clora'" in str(answer["node_errors"]["recipe"]["errors"])


def test_list_of_pictures_is_one_concept(server: Server):
    """As the stock nodes that read a folder return it; the node is not called for each picture."""
    assert server.run(saved_chain(1, "stacked", text="a photo of <ada>")).succeeded
    prompt = saved_chain(1, "listed", text="a photo of <ada>")
    prompt["listed"] = node("RebatchImages", images=["pictures1", 0], batch_size=1)
    prompt["train1"]["inputs"]["images"] = ["listed", 0]
    before = server.results
    run = server.run(prompt)
    assert run.succeeded, run.error
    assert server.results == before, "the same as what a stack of them gave"
    (exhibit,) = read_header(server.folder / "models/loras/museums/listed.museum.safetensors").exhibits
    assert exhibit.facts["pictures"] == 6 and str(exhibit.facts["checkpoint"]).startswith("built-in model · ")


def test_fourth_train_step_trains_only_itself(server: Server):
    server.run(saved_chain(3, "three"))
    before = server.results
    run = server.run(saved_chain(4, "four"))
    assert run.succeeded, run.error
    assert {"train1", "train2", "train3"} <= run.cached and "train4" not in run.cached
    assert len(server.results) == len(before) + 1 and before.items() <= server.results.items()


def test_stored_results_survive_another_workflow_and_a_restart(server: Server):
    first = server.run(saved_chain(2, "two"))
    before = server.results
    server.run(starter() | shown("a cat", ["base", 0], ["base", 1]))  # ComfyUI forgets what was cached
    server.restart()
    again = server.run(saved_chain(2, "two"))
    assert again.succeeded, again.error
    assert "train1" not in again.cached and "train2" not in again.cached
    assert server.results == before
    assert "already contains this museum" in again.history["outputs"]["save"]["text"][0]
    assert np.array_equal(server.pictures(again, "show"), server.pictures(first, "show"))


def interrupted(server: Server, prompt: Prompt) -> int:
    """How many steps the first Train Step makes, when Cancel is pressed after three of them."""
    with Events(server.address) as events:
        prompt_id = server.queue(prompt)
        events.wait_for(lambda seen: any(step >= 3 for step in seen.steps("train1")))
        server.post("/interrupt")
        assert server.finished(prompt_id).error == "interrupted"
        return max(events.steps("train1"))


def test_trained_base_samples_as_in_a_fresh_process(server: Server):
    plain = starter() | shown("a photo of a cat", ["base", 0], ["base", 1], seed=77)
    interrupted(server, saved_chain(1, "used", steps=40, training_seed=21))
    taught = server.run(plain | saved_chain(2, "used", training_seed=22) | shown("a dog", ["base", 0], ["base", 1]))
    assert taught.succeeded, taught.error
    used = server.run(plain)
    assert "show.sampler" not in used.cached
    server.restart()
    assert np.array_equal(server.pictures(server.run(plain), "show"), server.pictures(used, "show"))


def test_interrupted_step_resumes_to_the_same_result(server: Server):
    steps, name = 40, "interrupted"
    before = server.results
    whole = server.run(saved_chain(1, name, steps=steps, training_seed=7))
    assert whole.succeeded, whole.error
    (kept,) = [server.results_folder / name for name in server.results if name not in before]
    expected = load_file(kept)
    kept.unlink()
    shutil.rmtree(server.results_folder.with_name("kept"))  # the state at the end

    watched = saved_chain(1, name, steps=steps, training_seed=7, preview_every=20)  # another node, the same learning
    assert interrupted(server, watched) < steps
    (state,) = [file for file in server.results if file.endswith("state.safetensors") and file not in before]

    with Events(server.address) as events:
        resumed = server.run(watched)
        events.wait_for(lambda seen: max(seen.steps("train1"), default=0) == steps)
        texts = [text.replace("\u2060", "") for where, text in events.texts if where == "train1"]
        assert events.previews > 0
    assert resumed.succeeded, resumed.error
    assert events.steps("train1")[0] > 3
    assert re.match(r"resuming from step \d+ · teaching <ada> .* takes about \d+ MiB on top of the models", texts[0])
    parts = r"loss \d\.\d{3} · context preservation 0\.\d{3}"
    assert re.fullmatch(rf"step 40/40 · {parts} · \d+ s left", texts[-1]), texts[-1]
    assert state not in server.results
    found = load_file(kept)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert np.array_equal(server.pictures(resumed, "show"), server.pictures(whole, "show"))


def test_two_queued_prompts_do_not_interfere(server: Server):
    prompts = [saved_chain(1, f"queued{seed}", training_seed=seed) for seed in (11, 12)]
    runs = [server.finished(id) for id in [server.queue(prompt) for prompt in prompts]]
    assert all(run.succeeded for run in runs), [run.error for run in runs]
    together = [server.pictures(run, "show") for run in runs]
    server.stop()
    shutil.rmtree(server.results_folder.parent)
    shutil.rmtree(server.folder / "models/loras/museums")
    server.start()
    alone = [server.pictures(server.run(prompt), "show") for prompt in reversed(prompts)][::-1]
    assert np.array_equal(np.stack(together), np.stack(alone))
    assert not np.array_equal(together[0], together[1])


def test_stock_node_plots_the_loss(server: Server):
    prompt = chain(1) | {"plot": node("LossGraphNode", loss=["train1", 3], filename_prefix="loss")}
    run = server.run(prompt)
    assert run.succeeded, run.error
    assert len(np.unique(server.pictures(run, "plot").reshape(-1, 3), axis=0)) > 2


def test_load_lora_shows_the_saved_museum(server: Server):
    assert server.run(saved_chain(2, "stock", learning_rate=2e-2, forgetting_weight=0.0)).succeeded
    plain = "a photo of a cat"  # which nothing protects, so that the deltas show
    ours = server.pictures(server.run(loaded("stock", plain)), "show")
    prompt = starter() | shown(plain, ["lora", 0], ["lora", 1])
    prompt["lora"] = node(
        "LoraLoader",
        model=["base", 0],
        clip=["base", 1],
        lora_name="museums/stock.museum.safetensors",
        strength_model=1.0,
        strength_clip=1.0,
    )
    run = server.run(prompt)
    assert run.succeeded, run.error
    stock = server.pictures(run, "show")
    base = server.pictures(server.run(starter() | shown(plain, ["base", 0], ["base", 1])), "show")
    assert np.abs(stock.astype(int) - ours).max() <= 1
    assert np.abs(base.astype(int) - ours).mean() > 1


def test_taken_word_raises_a_clear_error(server: Server):
    prompt = chain(2)
    prompt["concept2"] = concept("<ada>")
    prompt["save"] = node("CLoRA_SaveMuseum", museum=["train2", 2], name="never", overwrite=False)
    run = server.run(prompt)
    assert not run.succeeded
    assert run.error.startswith("The word '<ada>' already names exhibit 1 of this museum. Choose another word")
    assert not (server.folder / "models/loras/museums/never.museum.safetensors").exists()


def test_two_joint_concepts_are_learned_saved_and_loaded(server: Server):
    prompt = saved_chain(1, "together")
    prompt["concept2"] = concept("<bo>")
    prompt["pictures2"] = node("CLoRA_StarterPictures", subject="bo", count=6, picture_seed=0)
    prompt["with"] = node("CLoRA_Companion", concept=["concept2", 0], images=["pictures2", 0], captions="")
    prompt["train1"]["inputs"]["companions"] = ["with", 0]
    run = server.run(prompt)
    assert run.succeeded, run.error
    assert "safetensors: <bo>, <ada>" in run.history["outputs"]["save"]["text"][0].replace("\u2060", "")
    again = server.run(loaded("together"))
    assert again.succeeded, again.error
    assert np.array_equal(server.pictures(again, "show"), server.pictures(run, "show"))
