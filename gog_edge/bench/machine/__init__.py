"""What the machine can do, and how close operators and stages come to it."""
