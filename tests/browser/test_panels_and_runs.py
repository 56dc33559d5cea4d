"""A panel belongs to one run: it survives a stop, another tab, another page and a server that is killed."""

from collections.abc import Iterator

import pytest

from tests.host.server import Server

from .conftest import HOST
from .frontend import Frontend

KIND = "CLoRA_TrainStep"
STEPS = 4000  # more than anybody waits for
LONG = {KIND: {"steps": STEPS, "batch_size": 1, "rank": 1, "preview_every": 10}}


@pytest.fixture(scope="module")
def opened(browser: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Frontend]]:
    """A server of its own, which may be killed, and its page."""
    if HOST is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH, or link this repository into its custom_nodes")
    server = Server(HOST, tmp_path_factory.mktemp("comfyui"))
    try:
        server.start()
        with Frontend.opened(browser, server.address) as frontend:  # type: ignore[arg-type]
            yield server, frontend
            assert not frontend.errors, frontend.errors
    finally:
        server.stop()


def load(frontend: Frontend) -> None:
    """Of the first workflow, only what teaches <ada>."""
    frontend.load("1-three-concepts", **LONG)
    frontend.page.evaluate(
        """() => {
            const first = app.graph.nodes.find((node) => node.type === "CLoRA_TrainStep")
            const fed = new Set([first.id])
            const add = (node) => node.inputs.forEach((input) => {
                const from = app.graph.links.get?.(input.link) ?? app.graph.links[input.link]
                if (from) { fed.add(from.origin_id); add(app.graph.getNodeById(from.origin_id)) }
            })
            add(first)
            for (const node of [...app.graph.nodes]) if (!fed.has(node.id)) app.graph.remove(node)
            const shown = LiteGraph.createNode("PreviewImage")
            app.graph.add(shown)
            first.connect(4, shown, 0)
        }"""
    )
    frontend.look_at(frontend.nodes(KIND)[0])


def panel(frontend: Frontend) -> dict:
    return frontend.page.evaluate(
        """() => {
            const panel = document.querySelector(".clora-training")
            return {
                title: panel.querySelector(".clora-title").textContent,
                note: panel.querySelector(".clora-note").textContent,
                points: panel.querySelector(".clora-line")?.getAttribute("d").split("L").length ?? 0,
                film: panel.querySelectorAll("figure").length,
            }
        }"""
    )


def wait_for(frontend: Frontend, text: str) -> None:
    frontend.page.wait_for_function(
        "(text) => document.querySelector('.clora-training')?.textContent.includes(text)", arg=text, timeout=120_000
    )


def wait_for_frames(frontend: Frontend, count: int) -> None:
    frontend.page.wait_for_function(
        "(count) => document.querySelectorAll('.clora-training figure').length >= count", arg=count, timeout=120_000
    )


def stop(frontend: Frontend) -> int:
    """Cancel; the step that it stopped at."""
    frontend.page.evaluate("async () => { await fetch('/interrupt', { method: 'POST' }) }")
    wait_for(frontend, "Run resumes from here")
    return int(panel(frontend)["note"].split()[3])


def test_a_graph_that_was_cleared_and_filled_again_is_marked(opened: tuple[Server, Frontend]):
    """No workflow was opened, so nothing but the run itself gives it the mark that its panels need."""
    _, frontend = opened
    load(frontend)
    marked = frontend.page.evaluate(
        """async () => {
            const before = app.graph.extra.clora
            app.graph.clear()
            app.graph.add(LiteGraph.createNode("CLoRA_StarterModel"))
            return [before, (await app.graphToPrompt()).workflow.extra.clora]
        }"""
    )
    assert all(marked) and len(set(marked)) == 2


def test_stopped_run_resumes_and_no_other_workflow_shows_it(opened: tuple[Server, Frontend]):
    _, frontend = opened
    load(frontend)
    first = frontend.page.evaluate("() => app.graph.serialize()")
    frontend.run()
    wait_for_frames(frontend, 3)  # a real picture, the untrained model, and a preview
    step = stop(frontend)
    stopped = panel(frontend)
    assert f"Stopped at step {step} · Run resumes from here" in stopped["note"] and stopped["points"]

    load(frontend)  # another workflow of the same file, with the same nodes
    frontend.page.wait_for_timeout(1000)
    assert "Training progress appears here" in panel(frontend)["title"]
    frontend.page.evaluate("(graph) => app.loadGraphData(graph)", first)
    frontend.look_at(frontend.nodes(KIND)[0])
    wait_for(frontend, "Run resumes from here")
    assert panel(frontend) == stopped

    frontend.run()
    wait_for(frontend, f"resuming from step {step}")
    assert panel(frontend)["film"] == stopped["film"] and panel(frontend)["points"] >= stopped["points"]
    assert stop(frontend) >= step


def test_killed_server_is_noticed(opened: tuple[Server, Frontend]):
    server, frontend = opened
    frontend.run()
    wait_for(frontend, "resuming from step")
    assert server.process
    server.process.kill()
    server.process.wait()
    wait_for(frontend, "no connection to ComfyUI")
