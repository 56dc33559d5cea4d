"""These tests need no ComfyUI."""

from .bare import import_bare

import_bare()
