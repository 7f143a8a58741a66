"""Bytes in, frames out: the catalogue of messages and their codec. No I/O."""
