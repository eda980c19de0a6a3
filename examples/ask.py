"""One question about a picture: the answer, why the loop ended, and what the answer rests on."""

from given import agent, given

args = given("What is the capital of the country of the second flag from the left?")
with agent(args) as policy:
    answer = policy.ask(args.picture, args.question)

print(answer.text or "no answer", f"({answer.stop.value}, {answer.seconds:.2f} s)")
for hit in answer.evidence:
    print(f"  {hit.title}: {hit.text}")
