"""What was learned: exhibits, in memory and in their file."""
