"""The trained policy as a folder that transformers and peft load, without anything of lit-align."""

from lit_align.export.callback import SaveModel

__all__ = ["SaveModel"]
