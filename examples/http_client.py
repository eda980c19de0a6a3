"""A question to `gog-edge serve`, with Python's standard library alone; events come as they happen.

Start the server first: gog-edge serve --bundle gog-nano --index FOLDER
"""

import base64
import json
import os
import urllib.request
from pathlib import Path

from given import given

args = given("What is the capital of the country of the second flag from the left?")
address = os.environ.get("GOG_EDGE_SERVER", "http://127.0.0.1:8710")
body = {
    "image": base64.b64encode(Path(args.picture).read_bytes()).decode(),
    "question": args.question,
    "deadline": 10,
    "stream": True,
}
request = urllib.request.Request(
    f"{address}/v1/ask", json.dumps(body).encode(), headers={"Content-Type": "application/json"}
)
with urllib.request.urlopen(request, timeout=30) as response:
    for line in response:  # server-sent events: "event: NAME", "data: JSON"
        if line.startswith(b"data:") and line.strip() != b"data: [DONE]":
            event = json.loads(line[5:])
            print(json.dumps(event)[:110])
