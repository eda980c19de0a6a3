"""The engine `openai:URL`: the policy's turns are written by a server, everything else happens here."""
