"""The museum file, what ordinary loaders read instead of it, and the saved state of an unfinished learning."""

from .checkpoint import load_state, save_state
from .export import export, export_embeddings, export_lora
from .files import check_target
from .header import ExhibitHeader, Header
from .museum_file import load_museum, read_header, save_museum

__all__ = [
    "ExhibitHeader",
    "Header",
    "check_target",
    "export",
    "export_embeddings",
    "export_lora",
    "load_museum",
    "load_state",
    "read_header",
    "save_museum",
    "save_state",
]
