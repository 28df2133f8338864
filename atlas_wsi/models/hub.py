"""Files of huggingface_hub: from the cache first."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

from atlas_wsi.errors import UnknownModelError
from atlas_wsi.files import require_extra

HUB = "hf://"


def from_hub(name: str, files: tuple[str, ...]) -> Path:
    """Take a file that the user named by its repository."""
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if not match:
        raise UnknownModelError(f"'{name}' is not a hub id.", hint="Give hf://owner/name@revision.")
    repo, revision = match.groups()
    return download(repo, files, revision=revision, what=name)


def download(repo: str, files: tuple[str, ...], *, revision: str | None, what: str) -> Path:
    """Take a file of a hub's repository from the cache, or else download it."""
    require_extra("huggingface_hub", "hub", to=what, error=UnknownModelError)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    reason: Exception | None = None
    for is_offline, file in product((True, False), files):
        try:
            return Path(hf_hub_download(repo, file, revision=revision, local_files_only=is_offline))
        except LocalEntryNotFoundError as error:  # not in the cache, or the hub was not reached
            reason = error
            if not is_offline:
                break
        except EntryNotFoundError as error:  # the repository has no such file
            reason = error
        except (OSError, ValueError, RuntimeError) as error:
            reason = error
            break
    raise UnknownModelError(
        f"{what} is not in the cache and could not be downloaded: {reason}",
        hint=f"Download {' or '.join(files)} on a machine with a network and give its path.",
    ) from reason
