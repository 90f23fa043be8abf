"""The mobd server. See docs/architecture.md for the layers."""
