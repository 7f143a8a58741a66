"""What all services share: supervision of asyncio tasks and the wake-up of a loop by other threads."""
