"""Answering over HTTP: one agent, a bounded queue, JSON or server-sent events."""
