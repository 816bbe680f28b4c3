"""The networks that ``architecture`` can name: registered ones, and those that a function of the user makes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from art_qplugins.errors import InputError, did_you_mean, shown
from art_qplugins.foreign import foreign
from art_qplugins.models import MODELS
from art_qplugins.recipes.user_code import called, check_name, imported, package_of
from art_qplugins.registry import Entry

if TYPE_CHECKING:
    from torch import nn

__all__ = ["architecture", "is_own", "package_of_architecture"]

#: What a recipe gives to the function of an architecture that has parameters of these names.
_GIVEN = ("shape", "nb_classes")


def architecture(name: str) -> Entry:
    """The row of a network: a registered one, or that of the user's function ``package.module:function``.

    :raises InputError: where there is none of this name. Nothing is imported.
    """
    if is_own(name):
        check_name(name, f"architecture {name}")
        return _OwnArchitecture(name=name, target=name, help="a network of the user")
    if "." in name and name not in MODELS:
        raise InputError(
            f"unknown architecture {shown(name)}; write your own as MODULE:FUNCTION, e.g. mypackage.models:make_net"
        )
    return MODELS[name]


def is_own(name: str) -> bool:
    """Whether a function of the user makes the network."""
    return ":" in name and name not in MODELS


def package_of_architecture(name: str) -> str:
    """The top-level package of other people's code that makes the network; "" where it is this one."""
    if is_own(name):
        return package_of(name)
    plugin = architecture(name).plugin
    return "" if plugin is None else plugin.package


class _OwnArchitecture(Entry):
    """A function of the user. Its options are its arguments, which only it knows."""

    def resolve(self, options: Mapping[str, Any], **known: Any) -> dict[str, Any]:
        for name in _GIVEN:
            if name in options:
                raise InputError(f"{self.name}: {name} is that of the data; leave it out")
        return dict(options)

    def load(self) -> Callable[..., nn.Module]:
        """The function that makes the network of images ``shape`` and of ``nb_classes`` classes, with options."""
        from torch import nn

        where = f"architecture {self.name}"
        function = imported(self.name, where)
        if isinstance(function, nn.Module):
            raise InputError(f"{where}: it is a network; give a function that makes one, or give this as factory")

        def make(shape: tuple[int, int, int], nb_classes: int, **options: Any) -> nn.Module:
            known = {"shape": shape, "nb_classes": nb_classes}
            named, any_name = _parameters(function)
            for name in options:
                if name not in named and not any_name:
                    raise InputError(f"{where}: unknown option {shown(name)}{did_you_mean(name, named)}")
            asked = {name: value for name, value in known.items() if name in named}
            network = called(function, self.name, where, **asked, **options)
            if not isinstance(network, nn.Module):
                raise InputError(f"{where}: it returns {shown(network)}; it must return a torch.nn.Module")
            with foreign(f"{where}: its network cannot be copied", package=package_of(self.name)):
                return copy.deepcopy(
                    network
                ).cpu()  # the function may give the same one again, which is trained by then

        return make


def _parameters(function: Any) -> tuple[list[str], bool]:
    """The names of the arguments that a function takes, and whether it takes any others."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # it is compiled, or no function
        return [], False
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    any_name = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    return [one.name for one in parameters if one.kind in kinds], any_name
