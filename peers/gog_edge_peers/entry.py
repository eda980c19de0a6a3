"""What `gog-edge bench` finds: the peers as it asks for them."""

from __future__ import annotations

from gog_edge.bench.peers import Peers
from gog_edge_peers.command import command
from gog_edge_peers.create import create_all, create_crops

PEERS = Peers(create_all, create_crops, command)
