"""SAEs that are not on this machine: `hf:OWNER/REPO/FOLDER` of the Hugging Face hub, or a URL, becomes a local folder, once."""

from fnmatch import fnmatchcase
from pathlib import Path

from natsort import natsorted

from seedscope.engine.contract.urls import on_this_machine, url_in
from seedscope.engine.urls.cache import fetch

PREFIX = "hf:"
# Files over an SAE's folder that some libraries keep the settings of a run in, and how far over it.
_OF_RUNS, _LEVELS = ("config.json", "cfg.json", "runner_cfg.json"), 3


def matching(pattern: str) -> list[Path]:
    """The local copies of the files and folders of a repository that match `hf:OWNER/REPO/FOLDER/PATTERN`, in natural order.

    `*` stands for any text in the last name alone. Raises ValueError as `local` does, and where nothing matches.
    """
    folder, _, name = pattern.rpartition("/")
    top = local(folder, only=name)
    entries = [each for each in top.iterdir() if fnmatchcase(each.name, name)]
    if not entries:
        raise ValueError(f"{pattern} matches no file of the repository; look at its files and name them otherwise")
    return natsorted(entries, key=lambda each: each.name)


def local(path: Path | str, *, only: str | None = None) -> Path:
    """A path as it is, or the local copy of a folder or file on the Hugging Face hub or behind a URL.

    `hf:OWNER/REPO` is a whole repository; `@REVISION` after the repository's name selects a branch, tag or commit. With `only`,
    names in the folder that match this pattern are downloaded and no others. Of a file behind a URL the JSON files beside it come
    with it. Raises ValueError where the name is malformed or the repository or storage cannot be reached.
    """
    if url := url_in(path):
        return fetch(url, settings_beside=lambda name: name.endswith(".json"), above=_OF_RUNS, levels=_LEVELS)
    text = str(on_this_machine(path))
    if not text.startswith(PREFIX):
        return Path(text).expanduser()
    owner, name, revision, inside = _parts(text)
    if not owner or not name:
        raise ValueError(f"{text} names no repository, expected hf:OWNER/REPO or hf:OWNER/REPO/FOLDER")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [inside, f"{inside.rstrip('/')}/**"] if inside else None
    if only:
        below = f"{inside.rstrip('/')}/{only}" if inside else only
        wanted = [below, f"{below}/**"]
    try:
        folder = Path(snapshot_download(f"{owner}/{name}", revision=revision or None, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{text} cannot be downloaded ({first}); check the name, the network and HF_TOKEN") from None
    if not (folder / inside).exists():
        raise ValueError(
            f"the repository {owner}/{name} holds no {inside}; look at its files and name one of its folders"
        )
    return folder / inside


def repository_names(path: Path | str) -> tuple[str, ...]:
    """(owner, repository, folders inside ..) of a name on the hub; () for a path."""
    text = str(path)
    if not text.startswith(PREFIX):
        return ()
    owner, name, _, inside = _parts(text)
    return (owner, name, *Path(inside).parts)


def _parts(text: str) -> tuple[str, str, str, str]:
    """(owner, repository, revision, path inside) of `hf:OWNER/REPO@REVISION/FOLDER`; what is left out is empty."""
    owner, _, rest = text.removeprefix(PREFIX).partition("/")
    name, _, inside = rest.partition("/")
    name, _, revision = name.partition("@")
    return owner, name, revision, inside
