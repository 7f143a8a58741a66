"""Connections: sockets in, frames out. The only place that touches sockets of the control plane."""
