"""What each of several processes runs: a short transfer."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from l2p_training import recipe, run_in

folder, output = Path(sys.argv[1]), sys.argv[2]
made = recipe(parts=1)
run = run_in(folder, output, replace(made, machine=replace(made.machine, shard=True, recompute=True)))
for step in run.go():
    print(step.step, step.losses["total"])
