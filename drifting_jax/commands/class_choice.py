"""Reads the classes that a person asks for: names, numbers and ranges of numbers."""

from __future__ import annotations

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from drifting_jax.data.class_names import aliases, class_table, title
from drifting_jax.errors import UserError

_SHOWN = 10  # of all classes, in a message
_MOST_READINGS = 1000  # that are looked at
_MOST_NAMED = 40  # of the chosen classes, in a line


def parse_classes(text: str, class_names: Sequence[str]) -> list[int]:
    """Class numbers of "0-9" (inclusive), "0,3,7-9" or names, in the order given; "" for all.

    A class of exactly that name is preferred to a number. A name may hold commas and spaces, and
    may be written in any case and in either Unicode normal form. Text in double quotes is one name.

    Raises:
      UserError: an entry that is neither a class number in range nor a name, or that can be read
        in two ways.
    """
    if not text:
        return list(range(len(class_names)))
    entries, known = _entries(text), _Classes(class_names)
    readings, repeats = _readings(entries, known)
    if len(readings) > 1:
        first, second = map(known.listed, readings)
        raise UserError(
            f"--classes={text} can be read in two ways, as {first} or as {second}: put each name "
            "in double quotes"
        )
    if readings:
        return readings[0]
    for entry in entries:  # raises for the first one that is wrong
        known.find(entry)
    repeated = min(c for c, count in collections.Counter(repeats).items() if count > 1)
    raise UserError(f"--classes names class {repeated} more than once: {text!r}")


def describe_classes(numbers: Sequence[int], class_names: Sequence[str]) -> str:
    """A line that names the chosen classes by number and title."""
    return f"classes: {_Classes(class_names).listed(numbers)}"


@dataclasses.dataclass(frozen=True)
class _Entry:
    """The text between two commas. `quoted`: it is a name, whatever it looks like."""

    text: str
    quoted: bool = False


def _entries(text: str) -> list[_Entry]:
    """The text between commas. Commas in double quotes do not count."""
    quoted = re.compile(r'\s*"([^"]+)"\s*(,|$)')
    found: list[_Entry] = []
    at: int | None = 0
    while at is not None:
        if match := quoted.match(text, at):
            found.append(_Entry(match[1], quoted=True))
            at = match.end() if match[2] else None
        else:
            end = text.find(",", at)
            found.append(_Entry(text[at:] if end < 0 else text[at:end]))
            at = None if end < 0 else end + 1
    return found


def _readings(entries: Sequence[_Entry], known: _Classes) -> tuple[list[list[int]], list[int]]:
    """At most two ways to read entries as different classes, and a way that repeats a class.

    Neighbouring entries may be one name with commas.
    """
    steps: list[list[tuple[int, list[int]]]] = []  # from each entry: (next entry, classes)
    for at in range(len(entries)):
        steps.append([])
        for end in range(at + 1, min(at + known.most_parts, len(entries)) + 1):
            if found := known.try_find(entries[at:end]):
                steps[at].append((end, found))
    leads = [False] * len(entries) + [True]  # whether the end can be reached
    for at in reversed(range(len(entries))):
        leads[at] = any(leads[end] for end, _ in steps[at])
    readings: list[list[int]] = []
    repeats: list[int] = []
    pending: list[tuple[int, list[int]]] = [(0, [])] if leads[0] else []
    left = _MOST_READINGS
    while pending and len(readings) < 2 and left:
        at, before = pending.pop()
        if at < len(entries):
            pending.extend((end, before + found) for end, found in steps[at] if leads[end])
            continue
        left -= 1
        if len(set(before)) < len(before):
            repeats = before
        elif before not in readings:
            readings.append(before)
    return readings, repeats


class _Classes:
    """The classes by all that they are called."""

    def __init__(self, names: Sequence[str]):
        self._names = names
        own = list(enumerate(names))
        words = [(i, word) for i, name in own for word in aliases(name)]
        # ImageNet's words for a class are one name with commas, too.
        words += [(i, class_table()[name]) for i, name in own if name in class_table()]
        self._exact = [_Index.of(own, form) for form in (str, _normal)]
        self._similar = [
            _Index.of(own, _similar),
            _Index.of(words, _normal),
            _Index.of(words, _similar),
        ]
        decimals = [(i, name) for i, name in own if name.isdecimal()]
        self._values = _Index.of(decimals, lambda name: str(_number(name)))
        self.most_parts = 1 + max((word.count(",") for _, word in words), default=0)

    def listed(self, numbers: Sequence[int]) -> str:
        """Number and title of each class."""
        shown = ", ".join(f"{i} ({title(self._names[i])})" for i in numbers[:_MOST_NAMED])
        more = f" and {len(numbers) - _MOST_NAMED} more"
        return shown + more * (len(numbers) > _MOST_NAMED)

    def try_find(self, entries: Sequence[_Entry]) -> list[int]:
        """The classes of an entry, or the class whose name several make; [] if there is none."""
        if len(entries) > 1:
            if any(entry.quoted for entry in entries):
                return []
            text = ",".join(entry.text for entry in entries)
            named = self._named(text, self._exact) or self._named(text, self._similar)
            return named if len(named) == 1 else []
        try:
            return self.find(entries[0])
        except UserError:
            return []

    def find(self, entry: _Entry) -> list[int]:
        """The classes of an entry. Raises UserError if there are none, or two readings."""
        text = entry.text if entry.quoted else entry.text.strip()
        found = self._named(entry.text, self._exact) or self._named(text, self._exact)
        numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        if not found and numbers and not entry.quoted:
            return self._numbered(text, _number(numbers[1]), _number(numbers[2] or numbers[1]))
        found = found or self._named(text, self._similar)
        if len(found) > 1:
            which = ", ".join(f"{i} ({', '.join(aliases(self._names[i]))})" for i in found)
            raise UserError(
                f"several classes are called {text!r}: {which}; give the number or the whole name"
            )
        if not found:
            known = ", ".join(map(title, self._names[:_SHOWN]))
            more = ", …" * (len(self._names) > _SHOWN)
            raise UserError(f"no class is called {text!r}; the classes are {known}{more}")
        return found

    def _numbered(self, text: str, low: int, high: int) -> list[int]:
        """The classes of a range of numbers, which may also be names: folders 1, 2, 3."""
        if low > high:
            raise UserError(f"--classes: {text!r} runs backwards; write {high}-{low}")
        count = len(self._names)
        values = range(low, high + 1) if high - low < count else range(0)
        by_name = [self._values.get(str(value)) for value in values]
        named = [i for found in by_name for i in found]
        if high >= count:
            if by_name and all(len(found) == 1 for found in by_name):
                return named
            raise UserError(f"classes run from 0 to {count - 1}; found {text!r} in --classes")
        if any(found not in ([], [i]) for i, found in zip(values, by_name, strict=True)):
            raise UserError(
                f"{text!r} in --classes can be read in two ways: by number as "
                f"{self.listed(values)}, by name as {self.listed(named)}: write out the names"
            )
        return list(values)

    @staticmethod
    def _named(text: str, indices: Sequence[_Index]) -> list[int]:
        """The classes of a name in the first index that knows it."""
        return next((found for index in indices if (found := index.get(text))), [])


@dataclasses.dataclass(frozen=True)
class _Index:
    """The classes of all names that have the same form."""

    form: Callable[[str], str]
    classes: dict[str, list[int]]

    @classmethod
    def of(cls, names: Iterable[tuple[int, str]], form: Callable[[str], str]) -> _Index:
        classes: dict[str, list[int]] = {}
        for i, name in names:
            found = classes.setdefault(form(name), [])
            if i not in found:
                found.append(i)
        return cls(form, classes)

    def get(self, name: str) -> list[int]:
        """The classes that are called so, or similarly."""
        return self.classes.get(self.form(name), [])


def _number(digits: str) -> int:
    """The number of some digits, cut to 18 of them: no data set has as many classes."""
    return int(digits.lstrip("0")[:18] or 0)


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _similar(name: str) -> str:
    """A name in small letters, without spaces at its ends and at commas."""
    words = re.sub(r"\s*,\s*", ",", " ".join(name.split()))
    return _normal(_normal(words).casefold())
