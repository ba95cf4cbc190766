"""/dev/fuse spoken directly: protocol, negotiation, reader threads, passthrough."""
