"""What the panels in the browser ask for: two routes, which read only.

GET /clora/museum?name=my.museum.safetensors     what is in the file, by its header
GET /clora/learning?workflow=ID                  what the panels of a workflow's Train Steps show
"""

import asyncio
import base64
import hashlib
from typing import Any

from aiohttp import web

from ...clora_core.errors import MuseumError
from .folders import museum_names, museum_path, museum_version
from .progress import PANELS

NAME_LIMIT = 200  # characters of a name that are repeated in an error
THUMBNAILS_LIMIT = 16 * 2**20  # bytes of all thumbnails together; the exhibits after that come without


def register_routes() -> None:
    """Add the routes, once, to ComfyUI's server. Without a server there is nobody who would ask."""
    from server import PromptServer

    if server := getattr(PromptServer, "instance", None):
        server.routes.get("/clora/museum")(museum)
        server.routes.get("/clora/learning")(learning)


async def museum(request: web.Request) -> web.Response:
    """The exhibits of a listed museum, or a sentence on why there are none."""
    name = request.query.get("name", "")
    if name not in museum_names():
        return _refused(404, f"There is no museum '{name[:NAME_LIMIT]}'. Press R to see which there are.")
    version = hashlib.sha256((await asyncio.to_thread(museum_version, name)).encode()).hexdigest()
    if request.headers.get("If-None-Match") == f'"{version}"':
        return web.Response(status=304)
    try:
        found = await asyncio.to_thread(_described, name)
    except MuseumError as error:
        return _refused(422, str(error))
    return web.json_response(found, headers={"ETag": f'"{version}"', "Cache-Control": "no-cache"})


async def learning(request: web.Request) -> web.Response:
    """Node → what its panel shows; nothing for an unknown workflow."""
    return web.json_response(PANELS.states(request.query.get("workflow", "")))


def _described(name: str) -> dict[str, Any]:
    from ...clora_core.museum.file import read_header  # none of the engine is imported while ComfyUI starts

    header = read_header(museum_path(name))
    exhibits, room = [], THUMBNAILS_LIMIT
    for told in header.exhibits:
        room -= len(told.thumbnail)
        exhibits.append(
            {
                "word": told.word,
                "kind": told.kind,
                "prompt": told.prompt,
                "recipe": told.recipe.method,
                "rank": max(told.ranks.values(), default=0),
                "steps": told.recipe.steps,
                "applied": told.recipe.applied,
                "strength": told.strength,
                "pictures": told.facts.get("pictures"),
                "date": told.facts.get("date"),
                "thumbnail": _thumbnail(told.thumbnail) if room >= 0 else "",
            }
        )
    return {"base": str(header.base), "dtype": header.dtype, "exhibits": exhibits}


def _thumbnail(encoded: bytes) -> str:
    """As a data URI; nothing for what is no small JPEG."""
    from ...clora_core.pictures import from_thumbnail

    try:
        from_thumbnail(encoded)
    except MuseumError:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode()


def _refused(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)
