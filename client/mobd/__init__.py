"""The light client and the agent SDK of mobd."""
