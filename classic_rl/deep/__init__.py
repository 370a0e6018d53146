"""What the deep algorithms stand on: networks, collection, runs, commands."""
