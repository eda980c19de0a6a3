"""What the policy looked at: every gazed region, cut from the original picture and saved."""

import tempfile
from pathlib import Path

from given import agent, given

import gog_edge

args = given("What is the capital of the country of the second flag from the left?")
out = Path(tempfile.mkdtemp(prefix="crops-"))
frame = gog_edge.Frame.open(args.picture)
with agent(args) as policy:
    answer = policy.ask(frame, args.question)

for step in answer.steps:
    for action in step.turn.actions:
        if action.region is not None:  # pixels of the upright original
            box = tuple(round(v) for v in action.region.as_tuple())
            path = out / f"step{step.index}-{'-'.join(map(str, box))}.png"
            frame.image().crop(box).save(path)
            print(path)
