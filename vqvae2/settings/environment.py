"""Environment and .env -> the folder that a variable names.

A `.env` has lines such as SLICES_PATH=~/slices, which python-dotenv reads: quotes, `export`, notes after # and ${HOME}
are understood. `docker --env-file` and the like hand quotes and `~` on as they are written, so a variable of the
environment is read in the same way.
"""

import codecs
import io
import logging
import os
import re
import sys
from pathlib import Path

from dotenv import dotenv_values

from vqvae2.common.errors import UserError
from vqvae2.settings.checks import expect

NAME = ".env"

logging.getLogger("dotenv").setLevel(logging.ERROR)  # its warning says less than `_from_file` does, in a second line


def folder_of(variable: str) -> Path | None:
    """Return the folder that `variable` names in the environment, else in .env; None if neither does.

    .env is looked for in the working folder, then beside the script that was started, and an empty value counts as
    none. A relative path in it starts from the folder that it is in.
    Raises: UserError where .env cannot be read, or its line for the variable cannot be understood.
    """
    for folder in (None, Path(), Path(sys.argv[0]).resolve().parent):
        text = os.environ.get(variable, "") if folder is None else _from_file(folder / NAME, variable)
        if text := text.strip(" '\"\r\n"):
            return (folder or Path()) / os.path.expanduser(os.path.expandvars(text))
    return None


def _from_file(path: Path, variable: str) -> str:
    """Return the variable's value in a .env, "" if there is none."""
    if not path.is_file():  # some keep a virtual environment in a folder of that name
        return ""
    try:
        raw = path.read_bytes()
        is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # PowerShell's echo writes it
        text = raw.decode("utf-16" if is_utf16 else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a file in UTF-8 that can be read, found {error}. Change its permissions or "
                        "encoding, or give the folder by its flag.") from None
    value = dotenv_values(stream=io.StringIO(text)).get(variable)
    lines = re.findall(rf"^[^\n#=]*\b{variable}\b.*", text, re.MULTILINE | re.IGNORECASE)
    expect(value is not None or not lines, str(path), f"{variable}=FOLDER", "".join(lines[:1]).strip(),
           "Correct that line.")
    return value or ""
