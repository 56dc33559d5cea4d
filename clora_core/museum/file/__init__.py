"""The museum file, and plain files of other programs, written and read."""

from .export import Exported, export, export_embeddings, export_lora
from .files import identity
from .header import ExhibitHeader, Header, Stored
from .importing import OrdinaryLora, imported, read_embedding, read_lora
from .museum_file import View, load_museum, load_view, read_header
from .names import check_names
from .replacing import check_target
from .saving import append_exhibits, save_museum

__all__ = [
    "ExhibitHeader",
    "Exported",
    "Header",
    "OrdinaryLora",
    "Stored",
    "View",
    "append_exhibits",
    "check_names",
    "check_target",
    "export",
    "export_embeddings",
    "export_lora",
    "identity",
    "imported",
    "load_museum",
    "load_view",
    "read_embedding",
    "read_header",
    "read_lora",
    "save_museum",
]
