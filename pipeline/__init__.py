"""Offline guidance: captions, their text features and object masks, computed once and cached per data set."""

from pipeline._typer import lazy_app

__getattr__, __dir__ = lazy_app("pipeline")
