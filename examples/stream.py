"""The same question, watched: what the policy writes, where it looks, and what comes back."""

from given import agent, given

from gog_edge.types import AnswerEvent, BoxEvent, ObservationEvent, TokenEvent

args = given("What is the capital of the country of the second flag from the left?")
with agent(args) as policy:
    for event in policy.stream(args.picture, args.question):
        if isinstance(event, TokenEvent):
            print(event.text, end="", flush=True)
        elif isinstance(event, BoxEvent):  # the box is closed while the call is still being written
            print("\n  looks at", [round(v) for v in event.region.as_tuple()], "px")
        elif isinstance(event, ObservationEvent):
            print("\n  found", [hit.title for hit in event.observation.hits] or event.observation.error)
        elif isinstance(event, AnswerEvent):
            print("\nanswer:", event.answer.text)
