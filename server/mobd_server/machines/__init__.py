"""What decides: deterministic, without I/O, clock or randomness. Everything else carries out what this says."""
