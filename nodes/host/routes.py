"""Read-only routes for the panels in the browser.

GET /clora/museum?name=my.museum.safetensors     the content of the file, from its header
GET /clora/learning?workflow=ID                  the panel states of a workflow's nodes
GET /clora/report?name=my_00001_.html            a report in the output folder, which may run no scripts
"""

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from ...clora_core.errors import MuseumError
from ...clora_core.texts import printable_values, shortened
from .folders import museum_names, museum_path, museum_version, report_path
from .panels import states

NAME_LIMIT = 200  # characters of a name that an error repeats
ONLY_ITSELF = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # whatever the file holds
THUMBNAILS_LIMIT = 16 * 2**20  # bytes of all thumbnails together; later exhibits are sent without theirs


def register_routes() -> None:
    """Add the routes to ComfyUI's server, if there is one."""
    from server import PromptServer

    if server := getattr(PromptServer, "instance", None):
        server.routes.get("/clora/museum")(museum)
        server.routes.get("/clora/learning")(learning)
        server.routes.get("/clora/report")(report)


async def museum(request: web.Request) -> web.Response:
    """The exhibits of a listed museum, or an error message."""
    name = request.query.get("name", "")
    if name not in museum_names():
        return _error(404, f"There is no museum '{name[:NAME_LIMIT]}'. Choose another, or save it with Save Museum.")
    version = hashlib.sha256((await asyncio.to_thread(museum_version, name)).encode()).hexdigest()
    if request.headers.get("If-None-Match") == f'"{version}"':
        return web.Response(status=304)
    try:
        content = await asyncio.to_thread(_content, name)
    except MuseumError as error:
        return _error(422, str(error))
    return _answer(content, headers={"ETag": f'"{version}"', "Cache-Control": "no-cache"})


async def learning(request: web.Request) -> web.Response:
    """Node → state of its panel; empty for an unknown workflow."""
    return _answer(states(request.query.get("workflow", "")))


async def report(request: web.Request) -> web.StreamResponse:
    """A page that Museum Report wrote. ComfyUI's own /view would offer it as a download."""
    name = request.query.get("name", "")
    path = report_path(name)
    if path is None:
        return _error(404, f"There is no report '{name[:NAME_LIMIT]}' in the output folder.")
    return _Page(path, headers={"Content-Type": "text/html"})


class _Page(web.FileResponse):
    """A file with our policy. It gets it last, since ComfyUI can set another on every answer."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        self.headers["Content-Security-Policy"] = ONLY_ITSELF
        return await super().prepare(request)


def _content(name: str) -> dict[str, Any]:
    from ...clora_core.museum.file import read_header  # the engine is not imported while ComfyUI starts
    from ...clora_core.museum.museum import learned_with

    header = read_header(museum_path(name))
    exhibits, room = [], THUMBNAILS_LIMIT
    for place, exhibit in enumerate(header.exhibits):
        room -= len(exhibit.thumbnail)
        holder = header.exhibits[learned_with(header.exhibits, place)]
        exhibits.append(
            {
                "word": exhibit.word,
                "kind": exhibit.kind,
                "prompt": shortened(exhibit.prompt),
                "recipe": shortened(exhibit.recipe.method),
                "rank": holder.rank,
                "weights": "" if holder is exhibit else holder.word,
                "steps": exhibit.recipe.steps,
                "applied": exhibit.recipe.applied,
                "strength": exhibit.strength,
                "pictures": _fact(exhibit.facts, "pictures", int),
                "date": _fact(exhibit.facts, "date", str),
                "checkpoint": _fact(exhibit.facts, "checkpoint", str),
                "thumbnail": _data_uri(exhibit.thumbnail) if room >= 0 else "",
            }
        )
    return {"base": str(header.base), "dtype": header.dtype, "exhibits": exhibits}


def _fact(facts: Mapping[str, object], name: str, kind: type) -> object:
    """A fact, which may be anything in a file from elsewhere, if it is of this kind; else None."""
    value = facts.get(name)
    if type(value) is not kind:
        return None
    return shortened(value) if isinstance(value, str) else value


def _data_uri(thumbnail: bytes) -> str:
    """The thumbnail as a data URI; empty if it is not a small JPEG."""
    from ...clora_core.pictures import as_uri, from_thumbnail

    try:
        from_thumbnail(thumbnail)
    except MuseumError:
        return ""
    return as_uri(thumbnail)


def _error(status: int, message: str) -> web.Response:
    return _answer({"error": message}, status=status)


def _answer(content: object, **options: Any) -> web.Response:
    """JSON in which every text is printable."""
    return web.json_response(printable_values(content), **options)
