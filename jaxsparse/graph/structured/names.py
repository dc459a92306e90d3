"""What groups of units are called, by the weights that they lie in."""

from collections.abc import Sequence


def names(groups: Sequence[Sequence[str]]) -> list[str]:
    """A name for every group, unlike those of the others.

    The folder that all its weights share, if no other group shares the same; else that folder
    and what differs in their paths.

    Args:
      groups: for each of them the paths of its weights.

    >>> names([["a/q/kernel", "a/o/kernel"], ["b/up/kernel", "b/down/kernel"]])
    ['a', 'b']
    >>> names([["0/q/kernel", "0/o/kernel"], ["0/up/kernel", "0/down/kernel"], ["w", "v"]])
    ['0/{q, o}', '0/{up, down}', 'w, v']
    """
    found: list[str] = []
    folders = [_folder(paths) for paths in groups]
    for folder, paths in zip(folders, groups, strict=True):
        alone = folder and folders.count(folder) == 1
        name = folder.rstrip("/") if alone else _differing(folder, paths)
        # Several groups may lie side by side in the same weights.
        alike = sum(other == name or other.startswith(f"{name} #") for other in found)
        found.append(f"{name} #{alike + 1}" if alike else name)
    return found


def _folder(paths: Sequence[str]) -> str:
    """The folder that all paths share, with a slash; empty if there is none."""
    folders = [path.split("/")[:-1] for path in paths]
    return "".join(f"{part}/" for part in folders[0][: _alike(folders)])


def _differing(folder: str, paths: Sequence[str]) -> str:
    """The paths; those in a folder without it, and without the end that all have: `/kernel`."""
    if not folder:
        return ", ".join(paths)
    parts = [path.removeprefix(folder).split("/")[::-1] for path in paths]
    end = min(_alike(parts), *(len(part) - 1 for part in parts))
    ends = ", ".join("/".join(part[end:][::-1]) for part in parts)
    return f"{folder}{{{ends}}}"


def _alike(lists: Sequence[Sequence[str]]) -> int:
    """How many first items all lists share."""
    places = zip(*lists, strict=False)
    return next((i for i, items in enumerate(places) if len(set(items)) > 1), min(map(len, lists)))
