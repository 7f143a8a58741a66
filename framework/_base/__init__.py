"""Ground floor: identities, limits, resources and options. No I/O, no clock, no randomness."""
