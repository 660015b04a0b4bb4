"""Control: policies that learn from demonstrations, one evaluation an action chunk (5.3)."""
