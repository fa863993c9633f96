"""A run on a Ray cluster of two nodes on this machine, one of which is lost in the middle.

`python tests/lost_node.py` prints whether it ends with the results of the local engine. It takes
minutes on two cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autolora_eval._files import CACHE_VARIABLE

# What one run and its repetition have in common, byte for byte: the rest tells times.
SAME = ("table.csv", "comparisons.csv", "diversity.csv", "features/*", "images/*/*/*.png")
TIMEOUT = 1800.0


def contents(folder: Path) -> dict[str, bytes]:
    """Return the results of a run folder."""
    paths = (path for pattern in SAME for path in folder.glob(pattern))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def command(output: Path, *options: str) -> list[str]:
    """Return the command of a small run."""
    limits = ["--limit-prompts", "2", "--limit-seeds", "4", "--output", str(output)]
    return [sys.executable, "-m", "autolora_eval", "run", "quickstart", *limits, *options]


def main() -> int:
    """Run on both engines, and compare."""
    from ray.cluster_utils import Cluster

    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray has it: other sums differ in their last bits
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    lost = cluster.add_node(**node)
    with tempfile.TemporaryDirectory(prefix="autolora-eval-") as scratch:
        spread, here = Path(scratch) / "ray", Path(scratch) / "local"
        process = subprocess.Popen(command(spread, "--ray-address", cluster.address))
        deadline = time.monotonic() + TIMEOUT
        while len(list(spread.glob("images/*/*/*.png"))) < 8:
            if process.poll() is not None or time.monotonic() > deadline:
                print("ended before a node could be lost")
                return 1
            time.sleep(0.05)
        cluster.remove_node(lost, allow_graceful=False)
        n = len(list(spread.glob("images/*/*/*.png")))
        print(f"one of two nodes is lost after {n} images")
        code = process.wait(TIMEOUT)
        cluster.shutdown()
        # Another cache of replies: the judge is asked again.
        subprocess.run(command(here), check=True, env=os.environ | {CACHE_VARIABLE: scratch})
        equal = contents(spread) == contents(here)
        print(f"exit code {code}, {len(contents(here))} files, equal: {equal}")
        return int(code != 0 or not equal)


if __name__ == "__main__":
    sys.exit(main())
