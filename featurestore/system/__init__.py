"""What the operating system gives: durable files, locks, memory and its limits."""
