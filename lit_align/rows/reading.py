"""Rows from files, from the hub and from memory, each with the name of its place.

JSON, JSONL and CSV are read with the standard library: Arrow's type inference, which `datasets`
puts in between, rewrites what it reads (text that looks like a date or like "NA", numbers beside
text, objects with different keys) and reports a broken line without its number. Parquet, folders
and the hub have a schema of their own and go through `datasets`. Local Parquet is streamed, so no
copy of it lands in a cache that could go stale.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from lit_align.console import progress_style
from lit_align.escape import escape
from lit_align.rows.cells import typed_cells

_TEXT = (".json", ".jsonl", ".csv")
_OTHERS = (".txt", ".tsv", ".zst", ".zip", ".xz", ".bz2", ".arrow", ".yaml", ".yml", ".xlsx", ".md", ".gz")
"""Ends of names that no data set of the hub has, of files that are not read."""
_SAVED = ("state.json", "dataset_dict.json")


class BadRow(ValueError):
    """A row that cannot be used.

    Args:
        where: file and row.
        reason: a short name that skips are counted under.
        why: what was expected and what came.
    """

    def __init__(self, where: str, reason: str, why: str) -> None:
        super().__init__(escape(f"{where}: {why}"))
        self.where = where
        self.reason = reason
        self.why = why


Row = tuple["dict[str, Any] | BadRow", str]
RowSource = str | list[str] | Iterable[Mapping[str, Any]]
"""Places of rows, or the rows themselves, such as a `datasets.Dataset`."""
_MEMORY = "rows in memory"


def read_rows(source: RowSource, split: str = "train", name: str | None = None) -> Iterator[Row]:
    """Yields each row with its place, or a :class:`BadRow` if the row cannot be read.

    Args:
        source: files (.json, .jsonl, .csv, .parquet, each also with .gz; globs such as `data/*.jsonl`), folders
            that `datasets` can load, or ids of data sets on the hub; one, or a list read in turn. Or the rows
            themselves: mappings, a `datasets.Dataset`, or a `DatasetDict` with its splits.
        split: the split of a folder, a hub data set or a `DatasetDict`; a local file is one split, and so is a data
            set that was saved without splits.
        name: the configuration of a hub data set.

    Raises:
        FileNotFoundError: if a source looks like a file and there is none.
        ValueError: if a file has a suffix that is not known, or there is no such split.
    """
    if isinstance(source, Mapping):
        source = _choose_split(source, split, "the DatasetDict")
    for number, item in enumerate([source] if isinstance(source, str) else source, 1):
        if isinstance(item, str):
            yield from _read_place(item, split, name)
        else:
            where = _where(_MEMORY, number)
            yield _as_row(item, where, "a mapping of columns"), where


def _read_place(place: str, split: str, name: str | None) -> Iterator[Row]:
    if not _is_local(place):
        yield from _from_datasets(place, split, name)
        return
    for path in _paths(place):
        yield from _from_datasets(str(path), split, name) if path.is_dir() else _read_file(path)


def describe_source(source: RowSource) -> str:
    """Where rows come from, for a message: "rows in ..."."""
    return ", ".join(_places(source)) or "memory"


def require_splits(source: RowSource, split: str, val_split: str | None = None) -> None:
    """Refuses a split of a source without splits, and held-out rows that are the training rows' own split.

    Args:
        source: of the training rows; see :func:`read_rows`.
        split: of the training rows.
        val_split: of the held-out rows, if they come from the same source.

    Raises:
        ValueError: in either case.
    """
    setting = f"val_split: {val_split}" if val_split is not None else f"split: {split}"
    has_splits = isinstance(source, Mapping) or any(map(_place_has_splits, _places(source)))
    if (val_split is not None or split != "train") and not has_splits:
        instead = "set the data's `val` to the held-out rows, or `val_fraction`" if val_split else "leave it out"
        places = ", ".join(_places(source)) or _MEMORY
        raise ValueError(f"`{setting}` takes a split of {places}, which has none: {instead}")
    if val_split == split:
        raise ValueError(f"`val_split` and `split` are both {split!r}: no row would be left to train on")


def demand_places(*sources: RowSource | None) -> None:
    """Refuses files and folders that are not there, before anything is read or asked of the hub.

    Raises:
        FileNotFoundError: there is no such file.
    """
    for source in sources:
        for place in [] if source is None else _places(source):
            if _is_local(place):
                _paths(place)


def _places(source: RowSource) -> list[str]:
    """The files, folders and hub ids of a source."""
    if isinstance(source, str):
        return [source]
    return [item for item in source if isinstance(item, str)] if isinstance(source, list | tuple) else []


def _place_has_splits(place: str) -> bool:
    folder = Path(place).expanduser()
    return not _is_local(place) or (folder.is_dir() and not (folder / "state.json").exists())


def _is_local(source: str) -> bool:
    path = Path(source).expanduser()
    looks_like_a_file = _suffix(path).lower() in (*_TEXT, *_OTHERS, ".parquet") or source.startswith(
        ("/", "./", "../", "~")
    )
    is_in_a_folder_here = "/" in source and path.parent.is_dir()
    return looks_like_a_file or glob.has_magic(source) or path.exists() or source.count("/") > 1 or is_in_a_folder_here


def _paths(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.exists():
        return [path]
    matches = sorted(glob.glob(str(path), recursive=True))
    if not matches:
        raise FileNotFoundError(
            f"no data at {source!r}: expected a file, a folder, a glob or a hub id such as 'org/name'"
        )
    return list(map(Path, matches))


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _read_file(path: Path) -> Iterator[Row]:
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(_suffix(path))
    if reader is None:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(readers)} (or these with .gz)")
    return reader(path)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, unpacked if it ends in .gz; what is wrong with the packing is said with its name."""
    with cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            yield file
        except EOFError as error:
            raise ValueError(f"{path}: the gzip file is cut off, copy or download it again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: expected a gzip file by its name, got something else: {error}") from error


def _load_json(text: str) -> Any:
    """The value; a ValueError also where Python's own limits are passed."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from error
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None
    except ValueError as error:  # of a number with thousands of digits
        raise ValueError(str(error).partition(";")[0]) from error


def _where(path: Path | str, row: int, line: int | None = None) -> str:
    return f"{path}, row {row}" + (f" (line {line})" if line not in (None, row) else "")


def _read_jsonl(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        yield from _json_lines(path, file)


def _json_lines(path: Path, lines: Iterable[bytes]) -> Iterator[Row]:
    row = 0
    for line, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        row += 1
        where = _where(path, row, line)
        try:
            yield _as_row(_load_json(raw.decode("utf-8-sig" if line == 1 else "utf-8")), where), where
        except UnicodeDecodeError as error:
            why = f"expected text in UTF-8, got {error.object[error.start : error.end]!r}"
            yield BadRow(where, "not_utf8", why), where
        except ValueError as error:
            why = f"expected one JSON object a line, got {_short(raw.decode())}: {error}"
            yield BadRow(where, "bad_json", why), where


def _read_json(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        content = file.read()
    try:
        loaded = json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise BadRow(_where(path, 1), "bad_json", "its lists or objects are nested too deeply") from None
    except ValueError as error:
        if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":  # a list breaks as a whole: no row can be trusted
            where = _where(path, 1) if not isinstance(error, json.JSONDecodeError) else f"{path}, line {error.lineno}"
            raise BadRow(where, "bad_json", f"expected a JSON list of objects, got broken JSON: {error}") from error
        yield from _json_lines(path, content.splitlines(keepends=True))  # many a .json holds JSON lines
        return
    yield from _numbered(path, loaded if isinstance(loaded, list) else [loaded])


def _numbered(place: Path | str, values: Iterable[Any]) -> Iterator[Row]:
    for number, value in enumerate(values, 1):
        where = _where(place, number)
        yield _as_row(value, where), where


def _as_row(value: Any, where: str, expected: str = "a JSON object") -> dict[str, Any] | BadRow:
    if isinstance(value, Mapping):
        return value if isinstance(value, dict) else dict(value)
    return BadRow(where, "not_an_object", f"expected {expected}, got {_short(value)}")


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default refuses a cell of more than 128 KiB
    with _opened(path) as file:
        lines = (raw.decode("utf-8-sig" if number == 0 else "utf-8") for number, raw in enumerate(file))
        reader = csv.DictReader(lines, strict=True, delimiter=_delimiter(path))
        row = 0
        while True:
            row += 1
            try:
                cells: dict[Any, Any] | None = next(reader, None)
            except (csv.Error, UnicodeDecodeError) as error:  # the reader cannot find the next row after this
                where = _where(path, row, reader.line_num + 1)
                raise BadRow(where, "bad_csv", f"expected CSV in UTF-8: {error}") from error
            if cells is None:
                return
            where = _where(path, row, reader.line_num)
            expected = len(reader.fieldnames or ())
            got = sum(value is not None for key, value in cells.items() if key is not None) + len(cells.get(None) or ())
            why = f"expected {expected} cells as in the header, got {got}"
            yield typed_cells(cells) if got == expected else BadRow(where, "bad_csv", why), where


def _delimiter(path: Path) -> str:
    """What stands between the names of the columns: a comma, or the semicolon or tab of a spreadsheet's export."""
    with _opened(path) as file:
        header = file.readline().decode("utf-8", "replace")
    return max(",;\t", key=header.count)


def _read_parquet(path: Path) -> Iterator[Row]:
    if path.suffix != ".gz":
        yield from _stream_parquet(path, str(path))
        return
    with (
        _opened(path) as packed,
        tempfile.NamedTemporaryFile(suffix=".parquet") as plain,
    ):  # Parquet needs random access
        shutil.copyfileobj(packed, plain)
        plain.flush()
        yield from _stream_parquet(Path(plain.name), str(path))


def _stream_parquet(file: Path, name: str) -> Iterator[Row]:
    from datasets import load_dataset
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import read_metadata

    try:
        if read_metadata(file).num_rows == 0:  # `datasets` has no name for this
            return
        rows = load_dataset("parquet", data_files=glob.escape(str(file.absolute())), split="train", streaming=True)
    except ArrowInvalid as error:
        raise ValueError(f"{name}: expected a Parquet file: {error}") from error
    yield from _numbered(name, rows)


def _from_datasets(source: str, split: str, name: str | None) -> Iterator[Row]:
    """A hub data set (cached by its revision) or a folder, either saved by `datasets` or of data files (streamed)."""
    folder = Path(source).expanduser()
    saved = folder.is_dir() and any((folder / marker).exists() for marker in _SAVED)
    rows = _saved_rows(folder, split) if saved else _loaded_rows(source, split, name, streaming=folder.is_dir())
    place = source if split == "train" else f"{source}[{split}]"
    yield from _numbered(place, rows)


def _saved_rows(folder: Path, split: str) -> Iterable[Any]:
    """The rows that `save_to_disk` wrote: one data set without splits, or several under their names."""
    from datasets import DatasetDict, load_from_disk

    saved = load_from_disk(str(folder))
    if not isinstance(saved, DatasetDict):
        return saved
    return _choose_split(saved, split, str(folder))


def _choose_split(splits: Mapping[Any, Any], split: str, name: str) -> Any:
    if split not in splits:
        raise _no_split(name, split, f"it has {', '.join(map(str, splits))}")
    return splits[split]


def _loaded_rows(source: str, split: str, name: str | None, streaming: bool) -> Iterable[Any]:
    from datasets import disable_progress_bars, load_dataset
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetNotFoundError

    if progress_style() != "bar":
        disable_progress_bars()
    place = str(Path(source).expanduser().resolve()) if streaming else source
    try:
        return load_dataset(place, name, split=split, streaming=streaming)
    except EmptyDatasetError as error:
        raise FileNotFoundError(f"the folder {source} holds no files of data: {error}") from error
    except (ConnectionError, DatasetNotFoundError) as error:
        raise FileNotFoundError(
            f"no data at {source!r}: there is no such file or folder here, and as a data set of the hub it cannot be "
            f"had: {error}"
        ) from error
    except ValueError as error:
        if "split" not in str(error).lower():
            raise
        raise _no_split(source, split, str(error)) from error


def _no_split(source: str, split: str, what: str) -> ValueError:
    return ValueError(
        f"{source} has no split {split!r} ({what}): set the data's `split`, and `val_split` for the held-out rows"
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text.strip()
    return repr(text if len(text) <= 60 else text[:57] + "...") if isinstance(value, str) else text[:60]
