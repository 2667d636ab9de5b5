"""Environment and .env -> the folder that a variable names, in whichever way it was written there.

A `.env` has lines such as SLICES_PATH=~/slices. People write them with quotes or without, with a slash at the end,
with `export`, `~` or $HOME, and editors add line ends and marks of their own. All of that is taken. `docker --env-file`
and the like hand quotes and `~` on as they are, so the same is done for a variable of the environment.
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

NAME = ".env"
QUOTES = {"'": "'", '"': '"', "`": "`", "“": "”", "‘": "’"}

logging.getLogger("dotenv").setLevel(logging.ERROR)  # its warning says less than `_from_file` does, in a second line


def folder_of(variable: str) -> Path | None:
    """Return the folder that `variable` names in the environment, else in .env; None if neither does.

    .env is looked for in the working folder, then beside the script that was started, and an empty value counts as
    none. A relative path in it starts from the folder that it is in.
    Raises: UserError where .env cannot be read, or its line for the variable cannot be understood.
    """
    if text := _meant(os.environ.get(variable, "")):
        return Path(os.path.expanduser(text))
    for folder in (Path(), Path(sys.argv[0]).resolve().parent):
        if text := _meant(_from_file(folder / NAME, variable)):
            return folder / Path(os.path.expanduser(text))
    return None


def _meant(text: str) -> str:
    """What a value says without quotes around it, with variables of the environment in place of their names."""
    text = text.strip()
    if len(text) > 1 and QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return os.path.expandvars(text)


def _from_file(path: Path, variable: str) -> str:
    """The variable's value in a .env, "" if it has none. A folder of that name is no .env: some hold an environment."""
    if not path.is_file():
        return ""
    try:
        raw = path.read_bytes()
        is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # PowerShell's echo writes it
        text = raw.decode("utf-16" if is_utf16 else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: expected a file that can be read, found {(error.strerror or '').lower()}. "
                        "Change its permissions, or give the folder by its flag.") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{path}: expected text in UTF-8, found other bytes. Save it as UTF-8, or copy .env.example "
                        "to .env again.")
    value = dotenv_values(stream=io.StringIO(text)).get(variable)
    line = re.search(rf"^[^\n#=]*\b{variable}\b.*", text, re.MULTILINE | re.IGNORECASE)
    if value is None and line:
        raise UserError(f"{path}: expected {variable}=FOLDER, found {line[0].strip()}. Correct that line.")
    return value or ""
