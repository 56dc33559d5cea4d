"""ComfyUI's page in a browser, and what tests and screenshots do with it."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Error, Page, Route, sync_playwright

from tests.host.finding import ROOT

OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
READY = """() => window.app?.canvas && app.extensionManager?.workflow?.activeWorkflow && app.graph.nodes.length > 0
    && app.api.clientId && app.api.socket?.readyState === WebSocket.OPEN"""
PATIENCE_MS = 60_000
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
VUE = "Comfy_VueNodes_Enabled"


@contextmanager
def chromium(path: str | None) -> Iterator[Browser]:
    """A browser without a window; `path` is its program, or None for Playwright's own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        yield browser
        browser.close()


@dataclass
class Frontend:
    """A page with ComfyUI in it. errors: those that the pack's own scripts made."""

    page: Page
    errors: list[str] = field(default_factory=list)

    @classmethod
    @contextmanager
    def opened(
        cls, browser: Browser, address: str, *, size: tuple[int, int] = (1280, 800), scale: float = 1, **settings: Any
    ) -> Iterator["Frontend"]:
        """settings: ComfyUI's own, with _ for the dots of their names."""
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            device_scale_factor=scale,
            permissions=["clipboard-read", "clipboard-write"],
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        frontend = cls(page)
        page.on("pageerror", frontend._hear)
        page.route("**/*", lambda route: _local(route, address))
        named = {name.replace("_", "."): value for name, value in settings.items()}
        context.request.post(f"http://{address}/settings", data=SETTINGS | named)
        page.goto(f"http://{address}/", wait_until="domcontentloaded")
        frontend.ready()
        try:
            yield frontend
        finally:
            context.close()

    def ready(self) -> None:
        """Wait until the page shows the workflow it starts with, and close what greets newcomers."""
        self.page.wait_for_function(READY)
        self.page.keyboard.press("Escape")

    def version(self) -> tuple[int, ...]:
        """(1, 27) for 1.27.10."""
        return tuple(map(int, self.page.evaluate("__COMFYUI_FRONTEND_VERSION__").split(".")[:2]))

    def reload(self) -> None:
        self.page.wait_for_timeout(1500)  # the page keeps its workflow about a second after a change
        self.page.reload(wait_until="domcontentloaded")
        self.ready()

    def load(self, name: str, **changes: Mapping[str, Any]) -> None:
        """An example workflow as one of its own, with widgets of kinds of nodes changed: kind → widget → value."""
        workflow = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
        workflow["id"] = str(uuid.uuid4())
        self.page.evaluate(
            """async ([workflow, changes]) => {
                await app.loadGraphData(workflow)
                for (const node of app.graph.nodes)
                    for (const [name, value] of Object.entries(changes[node.type] ?? {}))
                        node.widgets.find((widget) => widget.name === name).value = value
            }""",
            [workflow, changes],
        )

    def nodes(self, kind: str) -> list[int]:
        """The ids of all nodes of a kind."""
        return self.page.evaluate("kind => app.graph.nodes.filter((n) => n.type === kind).map((n) => n.id)", kind)

    def value(self, node: int, widget: str) -> Any:
        return self.page.evaluate(
            "([id, name]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name).value", [node, widget]
        )

    def set(self, node: int, widget: str, value: Any) -> None:
        """As an extension or a click on the widget does it: the value, and its callback."""
        self.page.evaluate(
            """([id, name, value]) => {
                const widget = app.graph.getNodeById(id).widgets.find((w) => w.name === name)
                widget.value = value
                widget.callback?.(value)
            }""",
            [node, widget, value],
        )

    def look_at(self, node: int, *, zoom: float = 1, x: int = 80, y: int = 120) -> None:
        """Move the canvas so that the node stands at that place of the window."""
        self.page.evaluate(
            """([id, zoom, x, y]) => {
                const { pos } = app.graph.getNodeById(id), view = app.canvas.ds
                view.scale = zoom
                view.offset[0] = x / zoom - pos[0]
                view.offset[1] = y / zoom - pos[1]
                app.canvas.setDirty(true, true)
            }""",
            [node, zoom, x, y],
        )
        self.page.wait_for_timeout(300)

    def undo(self) -> None:
        self.page.mouse.move(640, 780)
        self.page.keyboard.press("Control+z")

    def run(self) -> None:
        self.page.evaluate("() => app.queuePrompt(0, 1)")

    def wait_until_idle(self, seconds: float = 180) -> None:
        """Until nothing is queued or runs. This waits in the page, which gets its pictures only while it does."""
        waiting = "async () => Object.values(await (await fetch('/queue')).json()).flat().length"
        end = time.monotonic() + seconds
        while self.page.evaluate(waiting):
            assert time.monotonic() < end, "the queue does not end"
            self.page.wait_for_timeout(500)

    def picture(self, path: Path, node: int, *, beside: str = "", margin: int = 20) -> None:
        """The node as it looks, with what else is on the page (a CSS selector), and a little around."""
        left, top, right, bottom = self.page.evaluate(
            """([id, beside]) => {
                const { pos, size } = app.graph.getNodeById(id), { scale, offset } = app.canvas.ds
                const canvas = app.canvas.canvas.getBoundingClientRect()
                const left = canvas.x + (pos[0] + offset[0]) * scale, top = canvas.y + (pos[1] + offset[1]) * scale
                const other = beside ? document.querySelector(beside).getBoundingClientRect() : undefined
                const right = left + size[0] * scale, bottom = top + size[1] * scale
                return [left, top - LiteGraph.NODE_TITLE_HEIGHT * scale,
                        Math.max(right, other?.right ?? 0), Math.max(bottom, other?.bottom ?? 0)]
            }""",
            [node, beside],
        )
        clip = {"x": left - margin, "y": top - margin}
        clip |= {"width": right - left + 2 * margin, "height": bottom - top + 2 * margin}
        self.page.screenshot(path=path, clip=clip)

    def _hear(self, error: Error) -> None:
        if "C-LoRA" in (error.stack or ""):
            self.errors.append(f"{error.message}\n{error.stack}")


def _local(route: Route, address: str) -> None:
    """Nothing is asked of the Internet."""
    if route.request.url.startswith((f"http://{address}/", "data:", "blob:")):
        route.continue_()
    else:
        route.abort()
