"""A folder of pictures to JSON lines: one question about each; a picture that can't be read is told and passed over."""

import json
import sys
from pathlib import Path

from given import agent, given

import gog_edge

args = given("Which country has this flag?")
with agent(args) as policy:
    for picture in sorted(Path(args.picture).parent.glob("*.jpg")):
        try:
            answer = policy.ask(picture, args.question, deadline=5.0)
        except gog_edge.GogEdgeError as e:
            print(f"{picture}: {e}", file=sys.stderr)
            continue
        print(json.dumps({"picture": picture.name, "answer": answer.text, "seconds": round(answer.seconds, 3)}))
