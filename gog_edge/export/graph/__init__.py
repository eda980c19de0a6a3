"""What families are built of: a graph builder, a streaming weight file, and targets that turn ideas into nodes."""
