"""The simulation: whole clusters in one thread, in virtual time, from one seed. See docs/simulation.md."""
