"""Where the time of a question went, by stage, and the page that shows it."""

import tempfile
from collections import Counter
from pathlib import Path

from given import agent, given

import gog_edge

args = given("What is the capital of the country of the second flag from the left?")
record = gog_edge.Trace(args.question)
with agent(args) as policy:
    policy.ask(args.picture, args.question, trace=record)

spent: Counter[str] = Counter()
for span in record.spans:
    spent[span.stage] += span.seconds  # stages of different threads overlap
for stage, seconds in spent.most_common():
    print(f"{stage:12} {1000 * seconds:8.1f} ms")
page = Path(tempfile.mkdtemp(prefix="trace-")) / "trace.html"
gog_edge.save_trace(record, page)  # or .json, or .perfetto.json
print(page)
