"""An answer within a time, and a question that another thread cancels."""

import threading

from given import agent, given

import gog_edge

args = given("What is the capital of the country of the second flag from the left?")
with agent(args) as policy:
    answer = policy.ask(args.picture, args.question, deadline=2.0)  # seconds; the best answer so far comes back
    print(answer.text or "nothing yet", answer.stop.value)

    budget = gog_edge.Budget()
    threading.Timer(0.02, budget.cancel).start()
    answer = policy.ask(args.picture, args.question, budget=budget)  # ends at the next token, and does not raise
    print(answer.text or "nothing yet", answer.stop.value)
