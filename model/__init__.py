"""The fusion network: trained on cached guidance, used by `rwkvfusion fuse`, evaluated and reported.

`from model import fuse, load_weights` is the way in from Python (model/api.py).
"""

from typing import TYPE_CHECKING, Any

from pipeline._typer import lazy_app

if TYPE_CHECKING:
    from model.api import fuse, load_weights

__all__ = ["fuse", "load_weights"]

_attribute, _names = lazy_app("model")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        return _attribute(name)
    from model import api  # torch, which nobody who only asks for `app` should wait for

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*_names(), *__all__})
