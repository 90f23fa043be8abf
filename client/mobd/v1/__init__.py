"""The wire protocol, version 1: messages and stubs generated from proto/mobd/v1, and nothing written by hand."""
