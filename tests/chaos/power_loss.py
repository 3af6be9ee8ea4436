"""What a disk may hold after the power failed, made from the trace of what was done to it.

A name is sure once its folder was synced, a file's content once the file was. Of all the rest any part may be there, in
any order, but for one thing: a rename happens or does not, and never leaves the new name without a file.
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
    """`sure`: what was synced; `content`: what a reader sees."""

    sure: bytes = b""
    content: bytes = b""

    def after_crash(self, random: Random) -> bytes:
        """Of what was not synced all, nothing, a beginning, or zeros."""
        new = self.content[len(self.sure) :]
        return self.sure + random.choice([new, b"", new[: random.randrange(len(new) + 1)], bytes(len(new))])


@dataclass
class Folder:
    """`sure`: the names that were synced; `pending`: what was done since, as (name gone, name come, what it names)."""

    sure: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[tuple[str, str, File | Folder | None]] = field(default_factory=list)

    def names(self, random: Random | None = None, share: float = 1.0) -> dict[str, File | Folder]:
        """What a reader sees; with `random`, what a crash leaves, where each change had that chance to be kept."""
        names = dict(self.sure)
        for gone, come, node in self.pending:
            if random is None or random.random() < share:
                names.pop(gone, None)
                if node is not None:
                    names[come] = node
        return names


class Disk:
    """A disk with one folder, all of which is sure at first."""

    def __init__(self, root: Path) -> None:
        self._root, self._top = root, Folder()
        for path in sorted(root.rglob("*")):
            self._parent(str(path)).sure[path.name] = (
                Folder() if path.is_dir() else File(path.read_bytes(), path.read_bytes())
            )

    def do(self, operation: Operation) -> None:
        """Carry out one operation of a trace; those that change nothing do nothing."""
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
                    node.sure = node.content
                else:
                    node.sure, node.pending = node.names(), []

    def crash(self, random: Random) -> State:
        """One of the states that it may be in after a crash now."""
        share = random.choice([0.0, 0.5, 0.9, 1.0])  # of the names that were kept though nobody had asked for it
        found: State = {}
        folders = [("", self._top)]
        while folders:
            above, folder = folders.pop()
            for name, node in folder.names(random, share).items():
                found[above + name] = node.after_crash(random) if isinstance(node, File) else None
                if isinstance(node, Folder):
                    folders.append((f"{above}{name}/", node))
        return found

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
