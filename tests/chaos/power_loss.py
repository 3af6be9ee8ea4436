"""A model of a disk that loses power: from a record of the operations, what the disk may hold afterwards.

A name is durable once its folder was synced, and a file's content once the file was synced. Of all other changes any
may survive, in any order. But a rename either happens or does not: it never leaves the new name without a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from random import Random

from tests.chaos.disk import Operation

#: What a disk holds: the content of each file by its path, None for a folder.
State = dict[str, bytes | None]


@dataclass
class File:
    """`durable`: the content that was synced; `content`: what a reader sees."""

    durable: bytes = b""
    content: bytes = b""

    def after_crash(self, random: Random) -> bytes:
        """The synced content, followed by all, none or a part of the rest, or by zeros in its place."""
        new = self.content[len(self.durable) :]
        return self.durable + random.choice([new, b"", new[: random.randrange(len(new) + 1)], bytes(len(new))])


@dataclass
class Folder:
    """`durable`: the names that were synced; `pending`: later changes as (name removed, name added, node)."""

    durable: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[tuple[str, str, File | Folder | None]] = field(default_factory=list)

    def names(self, random: Random | None = None, share: float = 1.0) -> dict[str, File | Folder]:
        """The names that a reader sees; with `random`, those after a crash that keeps a `share` of the changes."""
        names = dict(self.durable)
        for removed, added, node in self.pending:
            if random is None or random.random() < share:
                names.pop(removed, None)
                if node is not None:
                    names[added] = node
        return names


class Disk:
    """A disk with one folder, all of which is durable at first."""

    def __init__(self, root: Path) -> None:
        self._root, self._top = root, Folder()
        for path in sorted(root.rglob("*")):
            self._parent(str(path)).durable[path.name] = (
                Folder() if path.is_dir() else File(path.read_bytes(), path.read_bytes())
            )

    def do(self, operation: Operation) -> None:
        """Apply one recorded operation; an operation that only reads changes nothing."""
        path = operation.path
        name = PurePosixPath(path).name
        match operation.kind:
            case "create":
                self._parent(path).pending.append(("", name, File()))
            case "mkdir":
                self._parent(path).pending.append(("", name, Folder()))
            case "unlink" | "rmdir":
                self._parent(path).pending.append((name, "", None))
            case "rename":
                assert PurePosixPath(path).parent == PurePosixPath(operation.target).parent
                self._parent(path).pending.append((name, PurePosixPath(operation.target).name, self._find(path)))
            case "write":
                file = self._find(path)
                assert isinstance(file, File)
                file.content += operation.content
            case "fsync":
                node = self._find(path)
                if isinstance(node, File):
                    node.durable = node.content
                else:
                    node.durable, node.pending = node.names(), []

    def crash(self, random: Random) -> State:
        """A random state that the disk may be in after a crash at this point."""
        share = random.choice([0.0, 0.5, 0.9, 1.0])  # the share of unsynced names that survive
        state: State = {}
        folders = [("", self._top)]
        while folders:
            above, folder = folders.pop()
            for name, node in folder.names(random, share).items():
                state[above + name] = node.after_crash(random) if isinstance(node, File) else None
                if isinstance(node, Folder):
                    folders.append((f"{above}{name}/", node))
        return state

    def _find(self, path: str) -> File | Folder:
        node: File | Folder = self._top
        for name in PurePosixPath(path).relative_to(self._root).parts:
            assert isinstance(node, Folder)
            node = node.names()[name]
        return node

    def _parent(self, path: str) -> Folder:
        parent = self._find(str(PurePosixPath(path).parent))
        assert isinstance(parent, Folder)
        return parent


def restore(state: State, folder: Path) -> None:
    """Write a state to a folder that does not exist yet."""
    folder.mkdir()
    for name in sorted(state):
        content = state[name]
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
