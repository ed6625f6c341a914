"""Scripts of this folder in processes of their own, whose memory is theirs alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def told_by(script: str, *options: str) -> Any:
    """What a script of this folder prints as JSON; what it says of errors is shown."""
    command = [sys.executable, str(Path(__file__).parent / script), *options]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
