"""What operators set and see.

Settings, logs, the check, metrics, health and the status page; and the threads in which
answers are refreshed.
"""

import json
from pathlib import Path

# It is kept in the OpenAPI document, which must be complete as a file.
VERSION: str = json.loads((Path(__file__).parent / "openapi.json").read_bytes())[
    "info"
]["version"]
