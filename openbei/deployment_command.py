"""The shell lines of a config.yaml, read and never run: how a text-embeddings-router starts, what git clones.

Owns the two grammars; never touches files, processes or the meaning of a flag.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath

SHELLS = frozenset({"sh", "bash"})
ROUTERS = frozenset({"text-embeddings-router", "bei"})
HUB = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+?)(\.git)?/?")
VARIABLE = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Start:
    """A server's start command: the variables set before it, and its arguments."""

    environment: dict[str, str]
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Clone:
    """A repository of the hub, cloned into a folder."""

    repo: str
    folder: str
    revision: str | None


def read_start(line: str) -> Start:
    """`[VAR=x] [exec] text-embeddings-router --flag ...`, also within `sh -c '...'` and after truss-transfer-cli.

    Raises ValueError with what is allowed.
    """
    commands = [words for words in _commands(line) if words != ["truss-transfer-cli"]]
    if len(commands) != 1:
        raise ValueError(f"must be one text-embeddings-router command, got {len(commands)} commands")
    words = commands[0]
    environment: dict[str, str] = {}
    while words and (words[0] == "exec" or VARIABLE.fullmatch(words[0])):
        name, equals, value = words.pop(0).partition("=")
        environment |= {name: value} if equals else {}
    program = PurePosixPath(words[0]).name if words else ""
    if program not in ROUTERS or (program == "bei" and words[1:2] != ["serve"]):
        raise ValueError(f"only text-embeddings-router and bei serve are understood, got {program!r}")
    return Start(environment, tuple(words[2 if program == "bei" else 1 :]))


def _commands(line: str) -> list[list[str]]:
    """A shell line -> its commands' words; one shell around them is opened."""
    words = _split(line)
    if words and PurePosixPath(words[0]).name in SHELLS and words[1:2] == ["-c"] and len(words) > 2:
        words = _split(words[2])
    commands: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", ";"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def _split(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words = list(lexer)
    strange = {word for word in words if word and set(word) <= set(";&|<>")} - {"&&", ";"}
    if strange:
        raise ValueError(f"pipes, redirections and background jobs are not understood, got {sorted(strange)}")
    return words


def read_clone(line: str) -> Clone | None:
    """`git clone [--depth N] [-b REVISION] https://huggingface.co/OWNER/NAME FOLDER [# words]`; None for all else."""
    words = line.partition(" #")[0].split()
    if words[:2] != ["git", "clone"]:
        return None
    revision, rest, position = None, list[str](), 2
    while position < len(words):
        name, equals, value = words[position].partition("=")
        if name in ("--depth", "-b", "--branch"):
            position += not equals
            value = value if equals else "".join(words[position : position + 1])
            revision = value if name != "--depth" else revision
        else:
            rest.append(words[position])
        position += 1
    found = HUB.fullmatch(rest[0]) if len(rest) == 2 else None
    return Clone(found[1], rest[1], revision) if found else None


def take(arguments: list[str], *names: str) -> str | None:
    """Remove a flag (`--name value`, `--name=value`) wherever it stands -> its last value, None if it is not there."""
    found: str | None = None
    position = 0
    while position < len(arguments):
        name, equals, value = arguments[position].partition("=")
        if name not in names:
            position += 1
        elif equals:
            found = value
            del arguments[position]
        else:
            found = arguments[position + 1] if position + 1 < len(arguments) else None
            del arguments[position : position + 2]
    return found
