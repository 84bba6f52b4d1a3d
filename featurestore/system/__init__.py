"""Access to the operating system: durable files, locks, memory and its limits."""
