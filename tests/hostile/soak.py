"""Every part of this package -> a table of what was tried, what was handled and what was lost.

    make soak                                     # all tries of all parts, at most three hours; again: goes on
    make soak PART=pictures
    python tests/hostile/soak.py --part pictures --count 20
    python tests/hostile/soak.py --part pictures --number 17      # repeats one try, and shows what happened

Two processes make the tries. How each ended stands in soak/results.jsonl, one line a try, with a hash of the code that
it was about; a try that stands there is not made again. A try that takes longer than ten minutes, or whose process
dies, is lost, as one that raises an error.

Exit status: 0 if nothing was lost, 1 if something was, 3 if nothing was but the time was over.
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "soak" / "results.jsonl"
PROCESSES, SECONDS_A_TRY = 2, 600
LOST = "lost"
"""The word of a try that did not end as it should."""


def part_names() -> list[str]:
    """Return the names of all parts, which are those of their modules."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py")
                  if path.stem not in ("part", "soak", "__init__") and not path.stem.startswith("test_"))


def load(name: str) -> object:
    """Return the `Part` of this name."""
    sys.path[:0] = [place for folder in ("tests/helpers", "tests", "") if (place := str(ROOT / folder)) not in sys.path]
    return importlib.import_module(f"hostile.{name}").PART


def code_hash(name: str) -> str:
    """Return a hash of all code that a part's tries depend on."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "vqvae2").rglob("*.py"), *(ROOT / "tests" / "helpers").glob("*.py"),
                        ROOT / "tests" / "conftest.py", *(Path(__file__).with_name(f"{each}.py")
                                                          for each in ("part", name))]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def results_of(name: str) -> dict[int, dict]:
    """Return how the tries of a part have ended with the present code, by their numbers."""
    found, code = {}, code_hash(name)
    if RESULTS.exists():
        for line in RESULTS.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError):  # the last line may be cut short
                row = json.loads(line)
                if (row["part"], row["code"]) == (name, code):
                    found[row["number"]] = row
    return found


def work(connection: Connection) -> None:
    """Make the tries that come in: (part, number, its prepared folder), with None for the number to prepare it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    for stream in (1, 2):  # what commands print would tear the parent's bar
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with suppress(EOFError, OSError):
        while True:
            name, number, prepared = connection.recv()
            connection.send(one_try(name, number, Path(prepared)))


def one_try(name: str, number: int | None, prepared: Path) -> tuple[str, str]:
    """Return the word for how a try ended, and the error's text if it is lost."""
    os.chdir(ROOT)
    try:
        with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
            if number is None:
                load(name).prepare(prepared)
                return "prepared", ""
            word = load(name).try_one(number, Path(folder), prepared)
            assert word and len(word.split()) == 1 and word != LOST, f"no word for how it ended: {word!r}"  # noqa: PT018
            return word, ""
    except BaseException:  # SystemExit too: a try that ends the process is one that is lost
        return LOST, traceback.format_exc()


@dataclass
class Worker:
    """A process that makes one try at a time."""

    process: multiprocessing.Process
    connection: Connection
    number: int | None = None
    began: float = 0.0

    @classmethod
    def start(cls) -> "Worker":
        """Return a new one, which has nothing to do."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs,))
        process.start()
        theirs.close()
        return cls(process, ours)

    def give(self, name: str, number: int | None, prepared: str) -> None:
        """Let it make a try."""
        self.number, self.began = number, time.monotonic()
        self.connection.send((name, number, prepared))

    def outcome(self, is_ready: bool) -> tuple[str, str] | None:
        """Return how its try ended; None while it is at work."""
        if is_ready:
            try:
                return self.connection.recv()
            except (EOFError, OSError):
                self.process.join()
                return LOST, f"its process ended with {self.process.exitcode}"
        if time.monotonic() - self.began > SECONDS_A_TRY:
            self.end()
            return LOST, f"it hangs: not ended after {SECONDS_A_TRY} seconds"
        return None

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join()


def tries(name: str, numbers: list[int], until: float) -> Iterator[tuple[int, str, str, float]]:
    """Yield (number, word, error, seconds) of each try of a part as it ends; no try begins after `until`."""
    waiting: deque[int] = deque()  # until the part is prepared
    workers, busy = [Worker.start() for _ in range(min(PROCESSES, len(numbers)))], []
    with tempfile.TemporaryDirectory(prefix=f"soak-{name}-", ignore_cleanup_errors=True) as prepared:
        try:
            workers[0].give(name, None, prepared)
            busy = workers[:1]
            while busy:
                ready = wait([worker.connection for worker in busy], timeout=1)
                for worker in list(busy):
                    if (outcome := worker.outcome(worker.connection in ready)) is None:
                        continue
                    busy.remove(worker)
                    if worker.number is None:
                        if outcome[0] == LOST:
                            raise SystemExit(f"{name}: cannot be prepared: {outcome[1]}")
                        waiting.extend(numbers)
                    else:
                        yield worker.number, *outcome, time.monotonic() - worker.began
                    if not worker.process.is_alive():
                        workers[workers.index(worker)] = Worker.start()
                for worker in workers:
                    if worker not in busy and waiting and time.monotonic() < until:
                        worker.give(name, waiting.popleft(), prepared)
                        busy.append(worker)
        finally:
            for worker in workers:
                if worker not in busy:
                    worker.connection.close()  # then it ends by itself
                    worker.process.join(10)
                worker.end()


def soak(name: str, count: int | None, until: float) -> tuple[object, list[dict], int]:
    """Make the tries of a part that were not made yet; return it, how all ended, and how many there are."""
    part, code, found = load(name), code_hash(name), results_of(name)
    total = part.count if count is None else count
    missing = [number for number in range(total) if number not in found]
    found = {number: row for number, row in found.items() if number < total}
    RESULTS.parent.mkdir(exist_ok=True)
    with (RESULTS.open("a", encoding="utf-8") as file,
          tqdm(total=total, initial=len(found), desc=name, unit="try", dynamic_ncols=True) as bar):
        for number, word, error, seconds in tries(name, missing, until) if missing else ():
            found[number] = {"part": name, "code": code, "number": number, "word": word,
                             "seconds": round(seconds, 2), "error": error}
            file.write(json.dumps(found[number]) + "\n")
            file.flush()
            if word == LOST:
                bar.write(f"{name} {number} is lost: {' '.join(error.split()[-40:])}\n    {repeating(name, number)}")
            bar.set_postfix(lost=sum(row["word"] == LOST for row in found.values()), refresh=False)
            bar.update()
    return part, list(found.values()), total


def repeating(name: str, number: int) -> str:
    """Return the command that makes one try again."""
    return f"python tests/hostile/soak.py --part {name} --number {number}"


def table(rows: list[tuple[object, list[dict], int]]) -> str:
    """Return how the tries of each part ended, in Markdown."""
    lines = ["| part | inputs | tried | handled | lost | how they ended | seconds |", "|---|---|---|---|---|---|---|"]
    for part, found, total in rows:
        words = Counter(row["word"] for row in found)
        lost = words.pop(LOST, 0)
        tried = f"{len(found):,}" + (f" of {total:,}" if len(found) < total else "")
        ends = ", ".join(f"{word} {count:,}" for word, count in words.most_common())
        lines.append(f"| {part.name} | {part.inputs} | {tried} | {len(found) - lost:,} | {lost} | {ends} | "
                     f"{sum(row['seconds'] for row in found):,.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Make the tries that the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=part_names(), help="only this part")
    parser.add_argument("--count", type=int, help="the first tries of each part, by default as many as the part has")
    parser.add_argument("--minutes", type=float, default=170, help="after which no try is begun (default 170)")
    parser.add_argument("--number", type=int, help="make this try of --part alone, in this process")
    asked = parser.parse_args()
    if asked.number is not None and asked.part is None:
        parser.error("--number: expected --part beside it")
    os.environ["OMP_NUM_THREADS"] = "1"
    if asked.number is not None:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as prepared:
            load(asked.part).prepare(Path(prepared))
            word, error = one_try(asked.part, asked.number, Path(prepared))
        print(error or word)
        raise SystemExit(word == LOST)
    until = time.monotonic() + asked.minutes * 60
    rows = [soak(name, asked.count, until) for name in ([asked.part] if asked.part else part_names())]
    print(table(rows))
    lost = [row for _, found, _ in rows for row in found if row["word"] == LOST]
    for row in lost:
        print(f"lost: {repeating(row['part'], row['number'])}")
    is_over = any(len(found) < total for _, found, total in rows)
    if is_over:
        print("The time was over before all was tried; the same command goes on.")
    raise SystemExit(1 if lost else 3 if is_over else 0)


if __name__ == "__main__":
    main()
