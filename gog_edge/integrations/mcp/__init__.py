"""An MCP server around one policy: `gog-edge mcp`."""
