"""A node that prints answers, and where the policy looked."""

import json

from dora import Node


def main() -> None:
    for event in Node():
        if event["type"] != "INPUT":
            continue
        if event["id"] == "answer":
            said = json.loads(event["value"][0].as_py())
            print(f"frame {said['frame']}: {said.get('answer') or said.get('error') or said['stop']}")
        elif event["id"] == "boxes":
            found = event["value"][0].as_py()
            corners = [[round(v) for v in found["bbox"][i : i + 4]] for i in range(0, len(found["bbox"]), 4)]
            print(f"looked at: {list(zip(found['labels'], corners))}")


if __name__ == "__main__":
    main()
