"""The search for what stays in float within a budget."""
