"""Read the Dockerfile and .dockerignore, as far as these two need it. What they do not use is an error."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Instruction(NamedTuple):
    """An instruction, such as COPY: its options, such as {"chmod": "755"}, and the rest of it, on one line."""

    name: str
    options: dict[str, str]
    rest: str

    @property
    def pairs(self) -> dict[str, str]:
        """What an ENV, ARG or LABEL sets. An ARG without a value is empty."""
        return {name: value for name, _, value in (word.partition("=") for word in shlex.split(self.rest))}


@dataclass
class Stage:
    """A stage: what it is made from, its name (or its number), and its instructions after FROM."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.name == name]


def stages(text: str) -> list[Stage]:
    """Return the stages of a Dockerfile, in order."""
    found: list[Stage] = []
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        if not line:
            continue
        name, _, rest = line.partition(" ")
        options = {}
        while option := re.match(r"--([a-z]+)=(\S+)\s+", rest):
            options[option[1]] = option[2]
            rest = rest[option.end() :]
        if name == "FROM":
            base, *alias = rest.split(" AS ")
            found.append(Stage(base, alias[0] if alias else str(len(found))))
        else:
            found[-1].instructions.append(Instruction(name, options, rest.strip()))
    return found


def ignore_patterns(text: str) -> list[str]:
    """Return the patterns of a .dockerignore."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Return whether the build does not see this file. A pattern matches a path or a folder above it, and the last one
    that matches decides.
    """
    ignored = False
    for pattern in patterns:
        expression = pattern_expression(pattern.removeprefix("!"))
        candidates = [path, *map(str, PurePosixPath(path).parents)]
        if any(expression.fullmatch(candidate) for candidate in candidates):
            ignored = not pattern.startswith("!")
    return ignored


def pattern_expression(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/"))
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))


def seen_files(context: Path, patterns: list[str]) -> Iterator[str]:
    """Yield the files of a folder that the build sees, as paths from there."""
    for path in sorted(context.rglob("*")):
        name = path.relative_to(context).as_posix()
        if not path.is_dir() and not is_ignored(name, patterns):
            yield name
