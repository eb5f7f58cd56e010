"""What the distribution carries, and which part may import which."""
