"""The node manager: resources, leases, worker processes and their output, for one machine."""
