"""Thin ComfyUI nodes over the engine. Only `host/` knows ComfyUI's own modules.

A new node is one class in the file of its topic and one line here. Node files import their action inside
`execute`, so that it does not slow down ComfyUI's start.
"""

from comfy_api.latest import ComfyExtension, io

from .companion import CompanionConcept
from .concept_token import ConceptTokenNode
from .edit_museum import EditMuseum
from .guard import guard
from .host.folders import register_museums
from .host.routes import register_routes
from .load_pictures import LoadPictures
from .museum_files import LoadMuseum, SaveMuseum
from .museum_report import MuseumReport
from .recipe import LearningRecipe
from .sort_pictures import SortPictures
from .starter import StarterModel, StarterPictures
from .train_step import TrainStep

NODES: tuple[type[io.ComfyNode], ...] = (
    ConceptTokenNode,
    LoadPictures,
    TrainStep,
    LoadMuseum,
    SaveMuseum,
    EditMuseum,
    MuseumReport,
    LearningRecipe,
    CompanionConcept,
    SortPictures,
    StarterModel,
    StarterPictures,
)
for node in NODES:
    guard(node)


class Extension(ComfyExtension):
    """The pack's nodes, as ComfyUI asks for them."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register_museums()
        register_routes()
        return list(NODES)
