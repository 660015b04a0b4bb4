"""Control: tasks for a policy, demonstrations of them, and rollouts that measure it."""
