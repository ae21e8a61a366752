"""What each of several processes runs: a short transfer, whose weights lie on the CPU if "offload" is said."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from l2p_training import recipe, run_in

folder, output, place = Path(sys.argv[1]), *sys.argv[2:]
made = recipe(parts=2 if place == "offload" else 1)  # one image a pass
machine = replace(made.machine, shard=True, recompute=True, offload=place == "offload")
run = run_in(folder, output, replace(made, machine=machine))
for step in run.go():
    print(step.step, step.losses["total"])
