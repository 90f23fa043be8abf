"""The metrics of a server, for Prometheus.

Every label comes from a set that the code closes: methods of the protocol, status codes, fates of appends, states of
agents. No id is ever a label, so the number of series does not grow with what callers do.
"""
