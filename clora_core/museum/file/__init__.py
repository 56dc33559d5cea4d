"""Read and write museum files, and plain files of other programs."""

from .export import Exported, export, export_embeddings, export_lora
from .files import identity
from .header import ExhibitHeader, Header, Stored
from .importing import OrdinaryLora, imported, read_embedding, read_lora
from .museum_file import View, load_museum, load_view, read_header
from .names import check_names
from .replacing import check_target
from .saving import append_exhibits, save_museum
