"""Every fuzz of this folder that is drawn by cases, one after the other, in a few minutes.

    python -m tests.fuzz --minutes 10 --seed 0

Products run with the best instruction set of this machine and with AVX2; then the transforms.
Each has a --help of its own: `python -m tests.fuzz.products --help`.
"""

import argparse
import subprocess
import sys

RUNS = [["products"], ["products", "--isa", "avx2"], ["transforms"]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0, help="for all of them together")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    asked = parser.parse_args()
    failed = []
    for name, *options in RUNS:
        command = [sys.executable, "-m", f"tests.fuzz.{name}", *options, "--seed", str(asked.seed)]
        command += ["--minutes", str(asked.minutes / len(RUNS))]
        print(" ".join(["python", *command[1:]]), flush=True)
        if subprocess.run(command).returncode:
            failed.append(" ".join([name, *options]))
    print(f"failed: {', '.join(failed)}" if failed else "nothing failed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(bool(main()))
