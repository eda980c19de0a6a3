"""Search over the network: HTTP with hard deadlines and safe addresses, web providers as data, page reading, MCP."""
