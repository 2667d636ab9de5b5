#!/usr/bin/env bash
# The BIDS validator does not ignore a folder of one level whose name ends with / in .bidsignore.
#
# Guessed: `.bidsignore` has the syntax of .gitignore, so the line `extra/` ignores the folder extra and all in it; the
#   validator's own manual gives `extra_data/` as its example.
# Seen, with bids-validator-deno 3.0.2 (deno 2.9.8): NOT_INCLUDED is reported as an error for /extra/ where the line is
#   `extra/`, `/extra/`, `extra/*` or `extra/**`. Only `extra` ignores the folder.
# What follows: no / behind a folder in .bidsignore; git reads that line alike.
#
# Exit status: 0 if this is still so, 1 if it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet bids-validator-deno==3.0.2 deno==2.9.8
cd "$work"
mkdir -p study/extra
echo '{"Name": "Study", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "us"}]}' \
    > study/dataset_description.json
echo "Not of BIDS." > study/extra/notes.txt
seen=""
for line in extra extra/ /extra/ 'extra/*' 'extra/**'; do
    echo "$line" > study/.bidsignore
    # its status is 1 where it finds an error
    count=$( (venv/bin/bids-validator-deno --json study 2> /dev/null || true) | grep -c '"code":"NOT_INCLUDED"' || true)
    echo "$line: ${count} line(s) with NOT_INCLUDED"
    seen="$seen$((count > 0))"
done
[ "$seen" = 01111 ]
