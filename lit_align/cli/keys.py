"""Finds unknown keys in configs and on the command line before the parser does, and names the nearest known one.

The parser refuses them, too, but in a long message about unions, and it accepts an empty unknown section.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._parameter_resolvers import get_signature_parameters
from jsonargparse._typehints import (
    ActionTypeHint,
    get_all_subclass_paths,
    get_subclass_types,
    resolve_class_path_by_name,
)
from jsonargparse._util import import_object
from torch import Tensor as _TENSOR  # some of torch's optimizers say that a number may be one

from lit_align.checks import is_record
from lit_align.cli.errors import UsageError
from lit_align.cli.yaml_files import load_config, parse_value, torchs_name

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
CONFIG_OPTIONS = ("--config", "-c")
_NUMBERS = (int, float, type(None))


@dataclass(frozen=True)
class AcceptedKeys:
    """The keys and options that a parser accepts.

    Args:
        keys: types by key; a dict in place of a type is a section of its own.
        options: options that only the command line has, such as `print_config`.
        defaults: the parser's defaults, nested.
    """

    keys: Mapping[str, Any]
    options: frozenset[str]
    defaults: Mapping[str, Any]

    @classmethod
    def of(cls, parser: ArgumentParser) -> AcceptedKeys:
        """Reads a parser's actions."""
        keys: dict[str, Any] = {}
        options = set()
        for action in parser._actions:
            options |= {option.lstrip("-") for option in action.option_strings}
            if action.dest in ("help", "config", "print_config") or action.dest.endswith(".help"):
                continue
            _add(keys, action.dest.split("."), action._typehint if isinstance(action, ActionTypeHint) else Any)
        return cls(keys, frozenset(options), _to_plain(parser.get_defaults()))


def _add(keys: dict[str, Any], path: Sequence[str], kind: Any) -> None:
    """Puts a type under its path. A section has an action of its own, too, which does not tell its keys."""
    head, *inner = path
    if not inner:
        keys.setdefault(head, kind)
        return
    if keys.get(head, Any) is Any:
        keys[head] = {}
    if isinstance(keys[head], dict):
        _add(keys[head], inner, kind)


def prefer_torch(args: Sequence[str]) -> list[str]:
    """The words, with the bare name of an optimizer as torch's: other packages have some of the same name."""
    words = list(args)
    for place, word in enumerate(words):
        option, equals, name = word.partition("=")
        if option == "--model.optimizer" and equals:
            words[place] = f"{option}={torchs_name(name)}"
        elif place and words[place - 1] == "--model.optimizer":
            words[place] = torchs_name(word)
    return words


def refuse_unknown_keys(accepted: AcceptedKeys, args: Sequence[str]) -> dict[str, Any]:
    """Checks the config files and the options of a command line, in their order.

    Returns:
        The settings, nested, with the class of each object under `class_path`.

    Raises:
        UsageError: a key or class is unknown, or a config file cannot be read.
    """
    settings: Any = accepted.defaults
    for where, layer in _layers(accepted, args):
        settings = _visit(layer, accepted.keys, settings, (), where)
    return dict(settings)


def _layers(accepted: AcceptedKeys, args: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each config file and each option as a nested dict, with the name of its source."""
    words = list(args)
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            continue
        option, equals, value = word.partition("=")
        if not equals and words and not words[0].startswith("--"):
            value = words.pop(0)
        if option in CONFIG_OPTIONS:
            yield value, load_config(value)
            continue
        keys = option.lstrip("-").split(".")
        if not equals and not value and len(keys) > 1 and keys[-1] != "help":
            raise UsageError(f"`{option}` needs a value: give it behind a blank or `=`")
        if keys[0].rstrip("+") in accepted.keys or option.lstrip("-") not in accepted.options:
            yield "the command line", _nest(keys, value)


def _nest(keys: Sequence[str], value: str) -> dict[str, Any]:
    nested: Any = parse_value(value)
    for key in reversed([key for key in keys if key != "help"]):
        nested = {key: nested}
    return nested


def _visit(value: Any, kind: Any, settings: Any, path: tuple[str, ...], where: str) -> Any:
    """Checks `value` against `kind` and merges it with the settings so far; returns the merged settings.

    If the settings so far are a list, keys without a class are arguments of its last object.
    """
    if isinstance(kind, Mapping):
        return _visit_keys(value, kind, settings, path, where)
    _refuse_no_number(value, kind, path, where)
    _refuse_no_class(value, kind, path, where)
    if isinstance(value, list):
        item = _item_type(kind)
        return [_visit(element, item, None, (*path, str(n)), where) for n, element in enumerate(value)]
    bases = tuple(base for base in _class_types(kind) if not is_record(base))
    if bases and (isinstance(value, Mapping) or (isinstance(value, str) and not _is_plain(value, kind))):
        if isinstance(settings, list) and isinstance(value, Mapping) and "class_path" not in value:
            return [*settings[:-1], _visit_class(value, bases, settings[-1] if settings else None, path, where)]
        replaces = isinstance(settings, str) and _is_plain(settings, kind) and "class_path" in value
        return _visit_class(value, bases, None if replaces else settings, path, where)  # "auto" is no class
    record = next((alternative for alternative in _alternatives(kind) if is_record(alternative)), None)
    if record is not None and isinstance(value, Mapping):
        return _visit_keys(value, parameters_of(record), settings, path, where)
    if record is not None:
        _refuse_single_value(value, kind, record, path, where)
    return value


def _refuse_no_number(value: Any, kind: Any, path: tuple[str, ...], where: str) -> None:
    """Refuses a text where only numbers can stand: the parser speaks of all that a number might have been."""
    if value is None or float not in _alternatives(kind) or not set(_alternatives(kind)) <= {*_NUMBERS, _TENSOR}:
        return
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"`{_dotted(path)}` in {where}: expected a finite number, got {str(value)[:60]!r}")


def _refuse_no_class(value: Any, kind: Any, path: tuple[str, ...], where: str) -> None:
    """Refuses a number, a list or nothing where only a class can stand."""
    bases = _class_types(kind)
    if isinstance(value, str | Mapping) or not bases or not set(_alternatives(kind)) <= set(bases):
        return
    raise UsageError(
        f"`{_dotted(path)}` in {where} takes a class (class_path) and its arguments, and got "
        f"{'nothing' if value is None else repr(value)[:60]}"
    )


def _refuse_single_value(value: Any, kind: Any, record: Any, path: tuple[str, ...], where: str) -> None:
    """Refuses a number or a word in place of keys. Null is allowed, and so is the path of a YAML file with the keys."""
    others = [alternative for alternative in _alternatives(kind) if alternative not in (record, type(None))]
    if value is None or others or (isinstance(value, str) and Path(value).is_file()):
        return
    names = ", ".join(f"`{_dotted((*path, name))}`" for name in parameters_of(record))
    raise UsageError(f"`{_dotted(path)}` in {where} takes keys, not the value {value!r}: set {names}")


def _visit_keys(value: Any, kinds: Mapping[str, Any], settings: Any, path: tuple[str, ...], where: str) -> Any:
    merged = dict(settings) if isinstance(settings, Mapping) else {}
    for key, item in value.items() if isinstance(value, Mapping) else ():
        name = str(key).removesuffix("+")
        if name not in kinds:
            _refuse((*path, name), kinds, where)
        visit = _visit if name == key else _append
        merged[name] = visit(item, kinds[name], merged.get(name), (*path, name), where)
    return merged


def _append(value: Any, kind: Any, settings: Any, path: tuple[str, ...], where: str) -> list[Any]:
    """Appends the value of a key that ends in `+` to the settings so far."""
    before = settings if isinstance(settings, list) else [settings] if isinstance(settings, Mapping) else []
    added = _visit(value, kind, None, path, where)
    return [*before, *(added if isinstance(added, list) else [added])]


def _visit_class(
    value: Mapping[str, Any] | str, bases: tuple[type, ...], settings: Any, path: tuple[str, ...], where: str
) -> Any:
    """Checks a value of a class type: `class_path` and `init_args`, only a name, or arguments of the class so far."""
    before = {"class_path": settings} if isinstance(settings, str) else settings
    before = before if isinstance(before, Mapping) else {}
    keys = {"class_path": value} if isinstance(value, str) else value
    name = keys.get("class_path", before.get("class_path"))
    if isinstance(value, str) and Path(value).is_file():
        return settings
    component = _resolve(name, bases, path, where) if isinstance(name, str) else bases[0]
    kinds = parameters_of(component)
    earlier = before.get("class_path")
    same = earlier is None or component is _resolve(earlier, bases, path, where)
    arguments = before.get("init_args", {}) if same else {}
    for key, item in keys.items():
        if key == "init_args":
            arguments = _visit_keys(item, kinds, arguments, (*path, key), where)
        elif key not in CLASS_KEYS:
            if name is None and not kinds:
                _refuse_nameless((*path, key), where)
            arguments = _visit_keys({key: item}, kinds, arguments, path, where)
    return {"class_path": name, "init_args": arguments}


def _refuse_nameless(path: tuple[str, ...], where: str) -> NoReturn:
    raise UsageError(
        f"`{_dotted(path)}` in {where} comes before the class that it belongs to: name that one first, such as "
        f"--{_dotted(path[:-1])}=NAME --{_dotted(path)}=VALUE (+=NAME adds to a list)"
    )


def _resolve(name: str, bases: tuple[type, ...], path: tuple[str, ...], where: str) -> Any:
    """Imports the class that a `class_path` names, in full or by its short name."""
    full = resolve_class_path_by_name(bases, name)  # type: ignore[arg-type]
    if "." not in full:
        paths = chain.from_iterable(map(get_all_subclass_paths, bases))
        _refuse((*path, "class_path"), {full_name.rsplit(".", 1)[1] for full_name in paths}, where, wrong=name)
    try:
        return import_object(full)
    except Exception as error:
        raise UsageError(f"`{_dotted(path)}` in {where}: cannot import the class {name!r}: {error}") from error


def _refuse(path: tuple[str, ...], names: Any, where: str, wrong: str | None = None) -> NoReturn:
    """Raises an error that names the nearest known name, or all of them."""
    names = sorted(map(str, names))
    by_form = {name.casefold(): name for name in names}
    close = difflib.get_close_matches((wrong or path[-1]).casefold(), by_form, n=1, cutoff=0.51)
    nearest = [by_form[form] for form in close]
    if wrong is None:
        what = f"unknown key `{_dotted(path)}`"
        best = _dotted((*path[:-1], *nearest))
    else:
        what = f"unknown class `{wrong}` for `{_dotted(path[:-1])}`"
        best = "".join(nearest)
    hint = f"did you mean `{best}`?" if nearest else f"known here: {', '.join(names) or 'none'}"
    raise UsageError(f"{what} in {where}: {hint}")


def _dotted(path: Sequence[str]) -> str:
    return ".".join(path)


def parameters_of(component: Any) -> dict[str, Any]:
    """The arguments of a class with their types, those that it hands on included."""
    return {parameter.name: parameter.annotation for parameter in get_signature_parameters(component)}


def _class_types(kind: Any) -> tuple[type, ...]:
    """The classes that a value of this type names by `class_path`; for a callable, those it returns."""
    none = (_TENSOR, Parameter.empty)  # an argument without a type is of any
    return tuple(base for base in get_subclass_types(kind, callable_return=True) or () if base not in none)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_plain(value: str, kind: Any) -> bool:
    """Whether a text is a value of the type itself, so that it does not name a class; "6e-4" is text to YAML."""
    alternatives = _alternatives(kind)
    if str in alternatives or Any in alternatives or any(get_origin(kind) is Literal for kind in alternatives):
        return True
    try:
        float(value)
    except ValueError:
        return False
    return True


def _item_type(kind: Any) -> Any:
    lists = [alternative for alternative in _alternatives(kind) if get_origin(alternative) in (list, Sequence)]
    return get_args(lists[0])[0] if lists and get_args(lists[0]) else Any


def _to_plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        value = {key: getattr(value, key) for key in vars(value)}
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    return value
