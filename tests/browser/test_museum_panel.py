"""The panel of Load Museum: it writes the node's `exhibits` text and follows every other change of it."""

import json

import pytest

from clora_core.museum.museum import parse_strengths

from .frontend import Frontend
from .museums import LARGE, SMALL

KIND = "CLoRA_LoadMuseum"


@pytest.fixture
def museum(frontend: Frontend) -> int:
    """The Load Museum node of the example, with the small museum."""
    frontend.load("2-load-a-museum")
    (node,) = frontend.nodes(KIND)
    frontend.set(node, "museum_name", SMALL)
    frontend.look_at(node)
    frontend.page.wait_for_selector(".clora-row >> nth=2")
    return node


def text(frontend: Frontend) -> str:
    (node,) = frontend.nodes(KIND)
    return frontend.value(node, "exhibits")


def states(frontend: Frontend) -> list[tuple[str, bool, float]]:
    """What every row shows: word, switch, strength."""
    return [
        tuple(row)
        for row in frontend.page.evaluate(
            """() => [...document.querySelectorAll(".clora-row:not(.clora-missing)")].map((row) => [
                row.querySelector("b").textContent, row.querySelector("[type=checkbox]").checked,
                row.querySelector("[type=number]").valueAsNumber])"""
        )
    ]


def row(frontend: Frontend, word: str):
    return frontend.page.locator(".clora-row", has_text=word)


def test_switches_and_sliders_write_the_text(frontend: Frontend, museum: int):
    assert states(frontend) == [("<ada>", True, 1), ("<bo>", True, 1), ("<cleo>", True, 1)]
    row(frontend, "<bo>").locator("[type=checkbox]").click()
    assert text(frontend) == "<ada>\n<cleo>"
    row(frontend, "<cleo>").locator("[type=range]").fill("0.4")
    assert text(frontend) == "<ada>\n<cleo>: 0.4"
    number = row(frontend, "<ada>").locator("[type=number]")
    number.fill("-1.5")
    number.press("Enter")
    assert text(frontend) == "<ada>: -1.5\n<cleo>: 0.4"
    frontend.page.click(".clora-head button")
    assert text(frontend) == ""


def test_showing_all_exhibits_needs_no_text_and_the_last_cannot_be_hidden(frontend: Frontend, museum: int):
    row(frontend, "<bo>").locator("[type=checkbox]").click()
    row(frontend, "<bo>").locator("[type=checkbox]").click()
    assert text(frontend) == ""
    row(frontend, "<cleo>").hover()
    row(frontend, "<cleo>").locator(".clora-only").click()
    assert text(frontend) == "<cleo>"
    assert row(frontend, "<cleo>").locator("[type=checkbox]").is_disabled()


def test_panel_follows_typing_and_keeps_unknown_lines(frontend: Frontend, museum: int):
    frontend.set(museum, "exhibits", "<bo>: 0.5\n<lost>: 2\n<ada>: much")
    assert states(frontend) == [("<ada>", False, 1), ("<bo>", True, 0.5), ("<cleo>", False, 1)]
    missing = frontend.page.locator(".clora-missing b").all_text_contents()
    assert missing == ["<lost>", "<ada>"]
    row(frontend, "<cleo>").locator("[type=checkbox]").click()
    assert text(frontend) == "<bo>: 0.5\n<cleo>\n<lost>: 2\n<ada>: much"
    frontend.page.locator(".clora-missing button").first.click()
    assert text(frontend) == "<bo>: 0.5\n<cleo>\n<ada>: much"


def test_undo_reverts_a_click_and_reload_keeps_it(frontend: Frontend, museum: int):
    row(frontend, "<bo>").locator("[type=checkbox]").click()
    row(frontend, "<ada>").locator("[type=checkbox]").click()
    assert text(frontend) == "<cleo>"
    frontend.undo()
    frontend.page.wait_for_function("() => document.querySelectorAll('.clora-row .clora-switch:checked').length === 2")
    assert text(frontend) == "<ada>\n<cleo>"
    frontend.reload()
    (node,) = frontend.nodes(KIND)
    frontend.look_at(node)
    frontend.page.wait_for_selector(".clora-row >> nth=2")
    assert text(frontend) == "<ada>\n<cleo>"
    assert states(frontend) == [("<ada>", True, 1), ("<bo>", False, 1), ("<cleo>", True, 1)]


def test_a_copied_node_has_its_own_panel(frontend: Frontend, museum: int):
    row(frontend, "<bo>").locator("[type=checkbox]").click()
    frontend.page.evaluate(
        "(id) => { app.canvas.selectNode(app.graph.getNodeById(id)); app.canvas.copyToClipboard() }", museum
    )
    frontend.page.evaluate("() => app.canvas.pasteFromClipboard()")
    (copy,) = (node for node in frontend.nodes(KIND) if node != museum)
    assert frontend.value(copy, "exhibits") == "<ada>\n<cleo>"
    frontend.set(copy, "exhibits", "<bo>")
    assert frontend.value(museum, "exhibits") == "<ada>\n<cleo>"
    frontend.page.wait_for_function("() => document.querySelectorAll('.clora-switch:checked').length === 3")


def test_panel_works_in_a_subgraph(frontend: Frontend, museum: int):
    frontend.page.evaluate(
        """(id) => {
            const made = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]))
            app.canvas.setGraph(made.subgraph)
            const [inner] = made.subgraph.nodes, view = app.canvas.ds
            view.offset = [80 - inner.pos[0], 120 - inner.pos[1]]
            app.canvas.setDirty(true, true)
        }""",
        museum,
    )
    row(frontend, "<bo>").locator("[type=checkbox]").click()
    prompt = frontend.page.evaluate("async () => (await app.graphToPrompt()).output")
    ((id, node),) = ((id, node) for id, node in prompt.items() if node["class_type"] == KIND)
    assert ":" in id and node["inputs"]["exhibits"] == "<ada>\n<cleo>"
    frontend.page.evaluate("() => app.canvas.setGraph(app.graph)")


def test_connected_museum_is_shown_as_such(frontend: Frontend, museum: int):
    """Also beside a file that is not there, which then does not matter."""
    frontend.set(museum, "museum_name", "none.museum.safetensors")
    message = frontend.page.locator(".clora-message")
    message.filter(has_text="There is no museum 'none").wait_for()
    frontend.page.evaluate(
        """(id) => {
            const other = LiteGraph.createNode("CLoRA_LoadMuseum")
            app.graph.add(other)
            const node = app.graph.getNodeById(id)
            other.connect(2, node, node.inputs.findIndex((input) => input.name === "museum"))
        }""",
        museum,
    )
    message.filter(has_text="Another node provides this value").wait_for()


def test_switch_replaces_an_invalid_strength(frontend: Frontend, museum: int):
    frontend.set(museum, "exhibits", "<ada>\n<bo>: loud")
    frontend.page.locator(".clora-missing", has_text="invalid strength").wait_for()
    frontend.page.locator(".clora-row:not(.clora-missing)", has_text="<bo>").locator("[type=checkbox]").click()
    assert text(frontend) == "<ada>\n<bo>"


def test_lost_connection_is_shown_and_tried_again(frontend: Frontend, museum: int):
    route = "**/clora/museum?**"
    frontend.page.route(route, lambda request: request.abort())
    frontend.set(museum, "museum_name", LARGE)
    frontend.page.locator(".clora-message", has_text="no connection").wait_for()
    frontend.page.unroute(route)
    frontend.page.evaluate("() => app.api.dispatchCustomEvent('reconnected')")
    frontend.page.wait_for_selector(".clora-row >> nth=999", state="attached")


def test_a_museum_that_a_run_saved_is_listed_and_chosen(frontend: Frontend, museum: int):
    """The node was made when there was none."""
    frontend.page.evaluate(
        """(id) => {
            app.graph.getNodeById(id).widgets.find((widget) => widget.name === "museum_name").options.values = [""]
        }""",
        museum,
    )
    frontend.set(museum, "museum_name", "")
    frontend.page.locator(".clora-message", has_text="There are no museums yet").wait_for()
    frontend.page.evaluate("() => app.api.dispatchCustomEvent('execution_success', {})")
    frontend.page.wait_for_selector(".clora-row >> nth=2", state="attached")
    assert frontend.value(museum, "museum_name") == min(LARGE, SMALL)


def test_panel_is_in_neither_workflow_nor_prompt(frontend: Frontend, museum: int):
    made = frontend.page.evaluate("async () => await app.graphToPrompt()")
    (node,) = (node for node in made["workflow"]["nodes"] if node["type"] == KIND)
    assert node["widgets_values"] == [SMALL, "", 1, False]
    inputs = made["output"][str(museum)]["inputs"]
    assert set(inputs) == {"model", "clip", "museum_name", "exhibits", "strength", "keep_apart"}
    assert "clora_museum" not in json.dumps(made["output"])


def test_word_is_copied_and_facts_are_shown(frontend: Frontend, museum: int):
    row(frontend, "<bo>").locator(".clora-word").click()
    frontend.page.wait_for_selector(".clora-word[data-copied]")
    assert frontend.page.evaluate("() => navigator.clipboard.readText()") == "<bo>"
    card = frontend.page.locator(".clora-card").inner_text()
    assert "a photo of <bo>" in card and "c-lora" in card and "starter" in card and "12" in card


def test_thousand_exhibits_can_be_searched_and_scrolled(frontend: Frontend, museum: int):
    frontend.set(museum, "museum_name", LARGE)
    frontend.page.wait_for_selector(".clora-row >> nth=999", state="attached")
    frames = frontend.page.evaluate(
        """async () => {
            const list = document.querySelector(".clora-list"), frame = () => new Promise(requestAnimationFrame)
            const seen = new Set()
            let count = 0
            for (const end = performance.now() + 1000; performance.now() < end; count++) {
                list.scrollTop += 400
                await frame()
                seen.add(list.scrollTop)
            }
            return [count, seen.size]
        }"""
    )
    assert frames[0] > 5 and frames[1] > 5, frames  # it goes on drawing, however slow the machine
    frontend.page.fill(".clora-head input", "w0042")
    assert frontend.page.locator(".clora-row:visible").count() == 1
    row(frontend, "<w0042>").locator("[type=checkbox]").click()
    assert "<w0042>" not in text(frontend).splitlines() and len(text(frontend).splitlines()) == 999


TEXTS = (
    "",
    "  \n",
    "<ada>",
    "<bo>:0.8\n<ada>",
    " <bo> : -1e-1 \n\n<cleo>:",
    "<ada>: 2\n<ada>: .5",
    "<lost>: 1\n<cleo>: 3.",
    "<b\u200bo>: 0.8\n<a\u2800d\u3164a>\n<cle\ufe0fo\u202e>: 2",
)


def test_panel_parses_texts_as_the_node(frontend: Frontend):
    words = ["<ada>", "<bo>", "<cleo>"]
    for source in TEXTS:
        named = parse_strengths([line for line in source.splitlines() if line.strip()])
        chosen, missing, again = frontend.page.evaluate(
            """async ([text, words]) => {
                const { parseExhibits, formatExhibits } = await import("/extensions/C-LoRA/museum_text.js")
                const { chosen, missing } = parseExhibits(text, words)
                const again = formatExhibits(words, chosen, missing.values())
                return [Object.fromEntries(chosen), [...missing.keys()], again]
            }""",
            [source, words],
        )
        assert chosen == {word: strength for word, strength in named.items() if word in words} or not named
        assert missing == [word for word in named if word not in words]
        shortest = parse_strengths([line for line in again.splitlines() if line.strip()])
        assert shortest == named or (not shortest and (not named or named == dict.fromkeys(words, 1.0)))
