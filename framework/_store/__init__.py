"""Shared memory: the arena that every process of a node maps, the layout of blocks, and the client of the
node's store.
"""
