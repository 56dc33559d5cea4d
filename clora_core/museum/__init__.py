"""Museums of learned exhibits, in memory and in files."""
