"""Finds unknown keys in configs and on the command line before the parser does, and names the nearest known one.

The parser refuses them too, but inside a page about unions, and it lets an empty unknown section pass.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse._parameter_resolvers import get_signature_parameters
from jsonargparse._typehints import (
    ActionTypeHint,
    get_all_subclass_paths,
    get_subclass_types,
    resolve_class_path_by_name,
)
from jsonargparse._util import import_object

from lit_align.cli.errors import UsageError

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
CONFIG_OPTIONS = ("--config", "-c")


@dataclass(frozen=True)
class Wanted:
    """What a parser accepts.

    Args:
        keys: types by key; a dict in place of a type is a section of its own.
        options: words accepted on the command line alone, such as `print_config`.
        defaults: the parser's defaults, nested.
    """

    keys: Mapping[str, Any]
    options: frozenset[str]
    defaults: Mapping[str, Any]

    @classmethod
    def of(cls, parser: ArgumentParser) -> Wanted:
        """Reads a parser's actions."""
        keys: dict[str, Any] = {}
        options = set()
        for action in parser._actions:
            options |= {option.lstrip("-") for option in action.option_strings}
            if action.dest in ("help", "config", "print_config") or action.dest.endswith(".help"):
                continue
            _add(keys, action.dest.split("."), action._typehint if isinstance(action, ActionTypeHint) else Any)
        return cls(keys, frozenset(options), _plain(parser.get_defaults()))


def _add(keys: dict[str, Any], path: Sequence[str], kind: Any) -> None:
    """Puts a type under its path. A section has an action of its own, too, which says nothing of its keys."""
    head, *rest = path
    if not rest:
        keys.setdefault(head, kind)
        return
    if keys.get(head, Any) is Any:
        keys[head] = {}
    if isinstance(keys[head], dict):
        _add(keys[head], rest, kind)


def refuse_unknown_keys(wanted: Wanted, args: Sequence[str]) -> dict[str, Any]:
    """Checks the config files and the options of a command line, in their order.

    Returns:
        What they set, nested, with the class of each object under `class_path`.

    Raises:
        UsageError: at the first key or class that is not known, or a config file that cannot be read.
    """
    known: Any = wanted.defaults
    for where, layer in _layers(wanted, args):
        known = _visit(layer, wanted.keys, known, (), where)
    return dict(known)


def _layers(wanted: Wanted, args: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each config file and each option as a nested dict, with where it comes from."""
    words = list(args)
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            continue
        option, equals, value = word.partition("=")
        if not equals and words and not words[0].startswith("--"):
            value = words.pop(0)
        if option in CONFIG_OPTIONS:
            yield value, _load(value)
            continue
        keys = option.lstrip("-").split(".")
        if keys[0].rstrip("+") in wanted.keys or option.lstrip("-") not in wanted.options:
            yield "the command line", _nested(keys, value)


def _load(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise UsageError(f"the config file {path!r} does not exist (looked in {Path.cwd()})")
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise UsageError(f"{path} should hold keys and values, but holds a {type(loaded).__name__}")
    return loaded or {}


def _nested(keys: Sequence[str], value: str) -> dict[str, Any]:
    nested: Any = _value(value)
    for key in reversed([key for key in keys if key != "help"]):
        nested = {key: nested}
    return nested


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _visit(value: Any, kind: Any, known: Any, path: tuple[str, ...], where: str) -> Any:
    """Checks `value` against `kind`, given what is known so far; returns what is known then.

    Where a list is known, keys without a class are arguments of its last object.
    """
    if isinstance(kind, Mapping):
        return _visit_keys(value, kind, known, path, where)
    if isinstance(value, list):
        item = _item_type(kind)
        return [_visit(one, item, None, (*path, str(n)), where) for n, one in enumerate(value)]
    bases = tuple(base for base in _class_types(kind) if not dataclasses.is_dataclass(base))
    if bases and (isinstance(value, Mapping) or (isinstance(value, str) and not _is_plain(value, kind))):
        if isinstance(known, list) and isinstance(value, Mapping) and "class_path" not in value:
            return [*known[:-1], _visit_class(value, bases, known[-1] if known else None, path, where)]
        return _visit_class(value, bases, known, path, where)
    record = next((one for one in _alternatives(kind) if dataclasses.is_dataclass(one)), None)
    if record is not None and isinstance(value, Mapping):
        return _visit_keys(value, _parameters(record), known, path, where)
    if record is not None:
        _refuse_single_value(value, kind, record, path, where)
    return value


def _refuse_single_value(value: Any, kind: Any, record: Any, path: tuple[str, ...], where: str) -> None:
    """Where keys belong, a number or a word does not; null may, and the path of a YAML file with the keys."""
    others = [one for one in _alternatives(kind) if one not in (record, type(None))]
    if value is None or others or (isinstance(value, str) and Path(value).is_file()):
        return
    names = ", ".join(f"`{_shown((*path, name))}`" for name in _parameters(record))
    raise UsageError(f"`{_shown(path)}` in {where} takes keys, not the value {value!r}: set {names}")


def _visit_keys(value: Any, kinds: Mapping[str, Any], known: Any, path: tuple[str, ...], where: str) -> Any:
    merged = dict(known) if isinstance(known, Mapping) else {}
    for key, one in value.items() if isinstance(value, Mapping) else ():
        name = str(key).removesuffix("+")
        if name not in kinds:
            _refuse((*path, name), kinds, where)
        visit = _visit if name == key else _append
        merged[name] = visit(one, kinds[name], merged.get(name), (*path, name), where)
    return merged


def _append(value: Any, kind: Any, known: Any, path: tuple[str, ...], where: str) -> list[Any]:
    """The value of a key that ends in `+`, behind what is known."""
    before = known if isinstance(known, list) else [known] if isinstance(known, Mapping) else []
    added = _visit(value, kind, None, path, where)
    return [*before, *(added if isinstance(added, list) else [added])]


def _visit_class(
    value: Mapping[str, Any] | str, bases: tuple[type, ...], known: Any, path: tuple[str, ...], where: str
) -> Any:
    """A value of a class type: `class_path` and `init_args`, a name alone, or arguments of the class known so far."""
    before = known if isinstance(known, Mapping) else {"class_path": known} if isinstance(known, str) else {}
    given = {"class_path": value} if isinstance(value, str) else value
    name = given.get("class_path", before.get("class_path"))
    if isinstance(value, str) and Path(value).is_file():
        return known
    component = _resolve(name, bases, path, where) if isinstance(name, str) else bases[0]
    kinds = _parameters(component)
    earlier = before.get("class_path")
    same = earlier is None or component is _resolve(earlier, bases, path, where)
    arguments = before.get("init_args", {}) if same else {}
    for key, one in given.items():
        if key == "init_args":
            arguments = _visit_keys(one, kinds, arguments, (*path, key), where)
        elif key not in CLASS_KEYS:
            if name is None and not kinds:
                _refuse_nameless((*path, key), where)
            arguments = _visit_keys({key: one}, kinds, arguments, path, where)
    return {"class_path": name, "init_args": arguments}


def _refuse_nameless(path: tuple[str, ...], where: str) -> NoReturn:
    raise UsageError(
        f"`{_shown(path)}` in {where} comes before the class that it belongs to: name that one first, such as "
        f"--{_shown(path[:-1])}=NAME --{_shown(path)}=VALUE (+=NAME adds to a list)"
    )


def _resolve(name: str, bases: tuple[type, ...], path: tuple[str, ...], where: str) -> Any:
    """The class that a `class_path` names, in full or by its short name."""
    full = resolve_class_path_by_name(bases, name)  # type: ignore[arg-type]
    if "." not in full:
        names = {one.rsplit(".", 1)[1] for base in bases for one in get_all_subclass_paths(base)}
        _refuse((*path, "class_path"), names, where, wrong=name)
    try:
        return import_object(full)
    except Exception as error:
        raise UsageError(f"`{_shown(path)}` in {where}: cannot import the class {name!r}: {error}") from error


def _refuse(path: tuple[str, ...], known: Any, where: str, wrong: str | None = None) -> NoReturn:
    """Raises the one short message."""
    names = sorted(str(name) for name in known)
    nearest = difflib.get_close_matches(wrong or path[-1], names, n=1, cutoff=0.5)
    if wrong is None:
        what = f"unknown key `{_shown(path)}`"
        best = _shown((*path[:-1], *nearest))
    else:
        what = f"unknown class `{wrong}` for `{_shown(path[:-1])}`"
        best = "".join(nearest)
    hint = f"did you mean `{best}`?" if nearest else f"known here: {', '.join(names) or 'none'}"
    raise UsageError(f"{what} in {where}: {hint}")


def _shown(path: Sequence[str]) -> str:
    return ".".join(path)


def _parameters(component: Any) -> dict[str, Any]:
    return {one.name: one.annotation for one in get_signature_parameters(component)}


def _class_types(kind: Any) -> tuple[type, ...]:
    """The classes that a value of this type names by `class_path`; for a callable, those it returns."""
    return tuple(get_subclass_types(kind, callable_return=True) or ())


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_plain(value: str, kind: Any) -> bool:
    """Whether a text is a value of the type itself, so that it does not name a class; "6e-4" is text to YAML."""
    if any(one is str or one is Any or get_origin(one) is Literal for one in _alternatives(kind)):
        return True
    try:
        float(value)
    except ValueError:
        return False
    return True


def _item_type(kind: Any) -> Any:
    lists = [one for one in _alternatives(kind) if get_origin(one) in (list, Sequence)]
    return get_args(lists[0])[0] if lists and get_args(lists[0]) else Any


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        value = {key: getattr(value, key) for key in vars(value)}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value
