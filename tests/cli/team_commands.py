"""What the processes of test_cli_teams.py do: `python team_commands.py FILE`, started as torchrun would. The file holds
commands, lists of the arguments of `pixdec`; their exit codes are the last line on stdout."""

import json
import sys
from pathlib import Path

from pixdec.cli import main

if __name__ == "__main__":
    codes = []
    for number, arguments in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        print(f"command {number}", flush=True)
        print(f"command {number}", file=sys.stderr, flush=True)
        codes.append(main(arguments))
    print(json.dumps(codes))
