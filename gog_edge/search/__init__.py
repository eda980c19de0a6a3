"""Searching: the provider Protocol, the embedded local index, web providers, replay."""
