"""`python -m clora_core`"""

import io
import sys

from .cli import main

for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a pipe on Windows may not support every character

sys.exit(main())
