"""Finished pipelines to the Hugging Face hub."""

from __future__ import annotations

import sys
from pathlib import Path

from mediffuse.translate import checkpoints
from train.options import OptionError


def check(repo: str) -> None:
    """Raises OptionError where a hub id is none, or there is no token to upload with: before anything is trained."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise OptionError(f"push_to_hub is {repo!r}, and should be a hub id, owner/name.") from error
    if not get_token():
        raise OptionError("push_to_hub needs a token that may write: run hf auth login, or set HF_TOKEN.")


def push(output: Path, repo: str) -> None:
    """Upload the pipeline that a run left in `output`; into a private repository, where there is none yet.

    A failure is said, and ends nothing: the pipeline is on the disk.
    """
    from huggingface_hub import HfApi

    for details in output.glob(f"*/{checkpoints.DETAILS}"):
        folder = details.parent
        try:
            api = HfApi()
            api.create_repo(repo, private=True, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Trained by {Path(sys.argv[0]).name}")
        except Exception as error:  # noqa: BLE001  requests, the hub and the network each have their own
            print(
                f"{folder} could not be uploaded ({type(error).__name__}). Upload it by: hf upload {repo} {folder}",
                file=sys.stderr,
            )
