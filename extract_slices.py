"""Raw brain scans -> 2-D slices as PNGs, their manifest, and a split by subject.

    python extract_slices.py --scans ~/data/oasis --out ~/data/oasis-slices
    python extract_slices.py --scans ~/data/oasis --out slices --planes axial coronal sagittal --per-scan 20
    python extract_slices.py --scans ~/data/oasis --out slices-128 --size 128 --bits 16 --workers 8 --strict

OASIS-1, -2 and -3 as downloaded, BIDS trees, FreeSurfer subjects and folders of NIfTI, Analyze or
MGH files are understood. Without --scans and --out, OASIS_PATH and SLICES_PATH are taken from the
environment or from .env. Nothing in --scans is changed.

    <out>/train, validate, test    <subject>[_<session>][_run-N]_<plane>NNN.png, NNN the plane's index
    <out>/manifest.csv             one row an image; there only when the extraction is complete
    <out>/rejected.csv             scans that cannot be used, each with its reason
    <out>/extraction.json          settings, versions and counts

Run it again to go on where it stopped, or after a change of scans or settings: only what is missing
or stale is made anew, and what is no longer wanted is removed.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from vqvae2 import config
from vqvae2.config import SPLITS, ExtractSettings
from vqvae2.errors import UserError, run_script
from vqvae2.scans import Found, Scan, find_scans
from vqvae2.slices import (MANIFEST_COLUMNS, RECIPE, SETTINGS_OF_PIXELS, TEMPORARY, csv_bytes, extract_scan, own_split,
                           split_subjects, write)
from vqvae2.volumes import UnusableScan
