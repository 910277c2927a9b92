"""The fusion network: trained on cached guidance, used by `rwkvfusion fuse`, evaluated and reported."""

from pipeline._typer import lazy_app

__getattr__, __dir__ = lazy_app("model")
