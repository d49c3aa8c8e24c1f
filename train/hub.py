"""Finished pipelines to the Hugging Face hub."""

from __future__ import annotations

import sys
from pathlib import Path

from mediffuse.translate import checkpoints
from train.options import OptionError


def prepare(repo: str) -> None:
    """Make a private repository, where there is none yet, before anything is trained.

    Raises OptionError where a hub id is none, there is no token to upload with, or it is not let.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise OptionError(f"push_to_hub is {repo!r}, and should be a hub id, owner/name.") from error
    if not get_token():
        raise OptionError("push_to_hub needs a token that may write: run hf auth login, or set HF_TOKEN.")
    try:
        HfApi().create_repo(repo, private=True, exist_ok=True)
    except Exception as error:  # requests, the hub and the network each have their own
        raise OptionError(
            f"push_to_hub: the hub gives no {repo} to write to ({type(error).__name__}). Is it spelt right, may the "
            "token write there, and is there a connection?"
        ) from error


def push(output: Path, repo: str) -> None:
    """Upload the pipeline that a run left in `output`. A failure is said, and ends nothing: it is on the disk."""
    from huggingface_hub import HfApi

    for details in output.glob(f"*/{checkpoints.DETAILS}"):
        folder = details.parent
        try:
            message = f"Trained by {Path(sys.argv[0]).name}"
            HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        except Exception as error:  # noqa: BLE001  requests, the hub and the network each have their own
            print(
                f"{folder} could not be uploaded ({type(error).__name__}). Upload it by: hf upload {repo} {folder}",
                file=sys.stderr,
            )
