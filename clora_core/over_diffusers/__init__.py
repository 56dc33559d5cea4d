"""Models held by diffusers and transformers, behind the seam of `model/base.py`."""
