"""Tests of a policy on a server."""
