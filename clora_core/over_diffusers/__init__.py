"""Models held by diffusers and transformers, behind the interface of `model/base.py`."""
