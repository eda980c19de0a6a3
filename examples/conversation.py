"""Several questions about one picture: it is encoded once. The conversation is saved and goes on elsewhere."""

import tempfile
from pathlib import Path

from given import agent, given

args = given("Which country has the leftmost flag?")
with agent(args) as policy, tempfile.TemporaryDirectory() as folder:
    saved = Path(folder) / "talk.gog"
    with policy.session(args.picture) as talk:
        first = talk.ask(args.question)
        second = talk.ask("What is the capital of the country of the second flag from the left?")
        talk.save(saved)
    with policy.resume(saved) as talk:  # also in another process, with the same bundle
        third = talk.ask("Which country has the second flag from the left?")

for answer in (first, second, third):
    usage = answer.usage
    print(f"{answer.text}: {usage.encoded_images} images encoded, {usage.reused_tokens} tokens from the cache")
