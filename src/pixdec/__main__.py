"""`python -m pixdec`: the command."""

from pixdec.cli import main

raise SystemExit(main())
