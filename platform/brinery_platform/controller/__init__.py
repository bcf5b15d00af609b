"""Makes reality match what was asked: builds, starts, stops, scales and heals. One leader at a time."""
