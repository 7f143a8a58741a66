"""The owner's side in driver and worker."""
