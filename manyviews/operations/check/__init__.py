"""What a build will meet: data, models, machine and time."""
