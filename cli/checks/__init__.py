"""What `piston doctor` checks."""
