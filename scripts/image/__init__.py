"""What scripts/verify-image is made of: container tools in a private corner, a base, checks."""
